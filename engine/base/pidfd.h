// A process as pid + pidfd: the pid is for messages and /proc, the pidfd cannot be recycled under us.
#pragma once

#include <sys/types.h>

#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit {

class PidFd {
 public:
  PidFd() = default;
  /// Errors: TargetGone when no such process exists, Denied.
  static Result<PidFd> open(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int get() const { return fd_.get(); }
  /// Duplicates `fd` of the process into this one; the open file description is shared. Errors: TargetGone,
  /// Denied.
  [[nodiscard]] Result<Fd> get_fd(int fd) const;
  [[nodiscard]] Status send_signal(int signal) const;
  /// True once the process has exited (a zombie counts).
  [[nodiscard]] bool exited() const;

 private:
  pid_t pid_ = 0;
  Fd fd_;
};

}  // namespace godwit
