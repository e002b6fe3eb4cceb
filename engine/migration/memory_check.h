// Memory compared page by page across the hosts, before COMMIT (`--verify`). Place in the pipeline: the
// source hashes what it froze, behind the last pages; the destination holds it against what it built, when
// all has arrived. Thread: the control lane's on either side.
#pragma once

#include "engine/base/result.h"
#include "engine/model/dirty_tracker.h"
#include "engine/model/page_set.h"
#include "engine/model/vma.h"
#include "engine/tracee/frozen.h"
#include "engine/tracee/memory.h"
#include "engine/wire/record_writer.h"
#include "engine/wire/state.pb.h"
#include "uffd/page_installer.h"

namespace godwit::migration {

/// Bytes that the kernel writes to by itself, so that they may differ: the rseq areas of the frozen threads.
std::vector<AddressRange> left_out_of_hashes(const tracee::Frozen& frozen);

/// Hashes every page that the frozen process holds, a shared object's or a file's through its mapping; bytes
/// of `left_out` count as zeros. Returns the number of pages. Errors: of reading, of the writer.
Result<uint64_t> send_hashes(const tracee::Memory& memory, DirtyTracker& tracker, const Layout& layout,
                             const std::vector<AddressRange>& left_out, wire::RecordWriter& writer);

/// The destination's half: hashes are kept until there is memory to compare.
class MemoryCheck {
 public:
  /// INVARIANT: ascending, within `layout`, a chunk at once; so what is kept here cannot outgrow the process.
  /// Errors: Corrupt.
  Status expect(wire::PageHashes hashes, const Layout& layout);
  /// Nothing if no hash was sent. Errors: Corrupt naming pages whose contents differ, or that only this side
  /// has.
  [[nodiscard]] Status compare(pid_t pid, const Layout& layout, const uffd::PageInstaller& installer) const;

 private:
  std::vector<wire::PageHashes> expected_;
};

}  // namespace godwit::migration
