// A small process beside a destination engine whose process runs and still lacks pages (post-copy). It holds
// the userfaultfds, too. KERNEL: when the last descriptor of one closes, the kernel lets every waiting fault
// through, and missing pages read as zeros. So when the engine dies, the keeper's keep the process from that:
// faults go on waiting, and the keeper stops the process. It stays until the process has ended.
//
// Lifecycle: start() forks it, early, for a fork takes time that a freeze does not have; dismiss() ends it.
// Thread: any, one at a time.
#pragma once

#include <sys/types.h>

#include "engine/base/fd.h"
#include "engine/base/pidfd.h"
#include "engine/base/result.h"

namespace godwit::migration {

class Keeper {
 public:
  static Result<Keeper> start();
  Keeper(Keeper&&) noexcept = default;
  Keeper& operator=(Keeper&&) = delete;
  /// Not dismissed, it takes over, as at this engine's death.
  ~Keeper() = default;

  /// Keeps a duplicate. Errors: System.
  [[nodiscard]] Status keep(int uffd) const;
  /// Whom it has to stop if this engine dies.
  [[nodiscard]] Status guard(const PidFd& process) const;
  /// Nothing is missing any more: it closes all that it holds and ends. Waits for that.
  void dismiss();

 private:
  Keeper(Fd line, pid_t pid) : line_(std::move(line)), pid_(pid) {}
  [[nodiscard]] Status send(char what, int fd) const;

  Fd line_;
  pid_t pid_ = 0;
};

}  // namespace godwit::migration
