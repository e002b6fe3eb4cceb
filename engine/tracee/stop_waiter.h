// Waiting for a traced thread to stop, without the two ways in which waitpid() can hang for ever: a thread
// that became another one by execve(), and a thread that cannot stop (uninterruptible wait, such as a parent
// in vfork()). A periodic timer signal on the waiting thread makes waitpid() look up; nothing else happens in
// its handler.
#pragma once

#include <sys/types.h>
#include <ctime>

#include "engine/base/clock.h"
#include "engine/base/result.h"

namespace godwit::tracee {

/// What waitpid() said of a stopped thread.
struct Stop {
  int status = 0;
  [[nodiscard]] int signal() const;          ///< of a signal-delivery stop, or of the group stop
  [[nodiscard]] bool is_event_stop() const;  ///< PTRACE_INTERRUPT, group stop, or a notice of either
  [[nodiscard]] bool is_group_stop() const;
  [[nodiscard]] bool is_syscall_stop() const;  ///< with PTRACE_O_TRACESYSGOOD
  [[nodiscard]] bool is_signal_delivery() const;
};

/// To be made and used on the tracer's thread. Takes the signal SIGRTMIN+5 of this process.
class StopWaiter {
 public:
  static Result<StopWaiter> create();
  StopWaiter(StopWaiter&& other) noexcept;
  StopWaiter& operator=(StopWaiter&&) = delete;
  ~StopWaiter();

  /// Blocks until `tid` of `pid` stops. Errors: TargetGone when it has ended (its zombie is reaped, where
  /// that is possible), Retry when it sits in an uninterruptible wait, Timeout after `limit`.
  Result<Stop> wait(pid_t pid, pid_t tid, Nanos limit);
  /// The same for a thread that was sent to work: it may wait uninterruptibly.
  Result<Stop> wait_patiently(pid_t pid, pid_t tid, Nanos limit);

 private:
  StopWaiter() = default;
  Result<Stop> wait_for(pid_t pid, pid_t tid, Nanos limit, bool patient);

  timer_t timer_{};
  bool armed_ = false;
  bool was_blocked_ = false;
};

}  // namespace godwit::tracee
