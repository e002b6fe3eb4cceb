// Shared memory objects on the source: found by layout and descriptors, carried by content. Nobody's page
// tables tell of all writes to them (other processes, write(2) by descriptor, hole punching). So each pass
// reads the objects that may have been written since they were read (object_watch tells), hashes every page,
// and sends those that differ from what was sent.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/units.h"
#include "engine/migration/batch_sender.h"
#include "engine/migration/object_scan.h"
#include "engine/migration/object_watch.h"
#include "engine/state/memory_objects.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/record_writer.h"

namespace godwit::migration {

class ObjectSender {
 public:
  struct Pass {
    uint64_t pages = 0;  ///< sent
    uint64_t bytes = 0;  ///< read: holes are not
  };

  /// Borrows both, which are of one channel.
  static Result<ObjectSender> create(wire::RecordWriter& writer, BatchSender& sender);

  /// Announces objects that are new or have another size, as a description record of room "memory-objects".
  /// `frozen`: the sizes are final. Before, none shrinks at the peer: that would take pages from private
  /// mappings there, which here are new ones by now, over the object grown again.
  Status announce(std::vector<state::ObjectSource> objects, bool frozen);
  [[nodiscard]] bool knows(uint64_t id) const { return known_.contains(id); }

  /// The next pass leaves out what has not changed since it was read. ORDER: before the wait for calls that
  /// fill pages late (pinned_writes): one that began by a mapping which is gone now has ended then.
  Status look();
  /// That wait was given up: what the next pass reads may change unseen.
  void distrust();
  /// Sends what differs from what was last sent. In the freeze it is the last word.
  Result<Pass> pass(bool frozen);

  /// Not empty: why each pass reads all objects.
  [[nodiscard]] const std::string& blind() const { return blind_; }

 private:
  struct Known {
    state::ObjectSource source;
    std::vector<uint64_t> hashes;  ///< XXH3 of what the destination holds, by page; 0: zeros (never sent)
    std::optional<ObjectLook> read_as_of;  ///< the look before the reading that `hashes` are of
    std::optional<ObjectLook> now;         ///< the look for the next pass
  };
  ObjectSender(wire::RecordWriter& writer, BatchSender& sender, wire::PageBatchWriter batch)
      : writer_(&writer), sender_(&sender), batch_(std::move(batch)), buffer_(256_KiB) {}
  static ReadableObject file_of(const Known& known);
  void prepare();
  Status pass_differing(Known& known, Pass& pass);
  Status pass_all(Known& known, Pass& pass);
  Status pass_chunk(Known& known, const ReadableObject& file, uint64_t offset, size_t bytes, Pass& pass);
  Status send_page(Known& known, uint64_t offset, std::span<const std::byte, kPageSize> page, Pass& pass);

  wire::RecordWriter* writer_;
  BatchSender* sender_;
  wire::PageBatchWriter batch_;
  std::vector<std::byte> buffer_;
  std::map<uint64_t, Known> known_;
  std::optional<ObjectScan> scan_;  ///< from the first object on, unless the freeze brought it
  std::optional<ObjectWatch> watch_;
  std::string blind_;
};

}  // namespace godwit::migration
