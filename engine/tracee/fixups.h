// What a stop leaves behind in a thread that a native run would never show, and how it is put right.
// Private to tracee: Frozen calls it, on the tracer's thread.
#pragma once

#include "engine/tracee/frozen.h"

namespace godwit::tracee {

constexpr uint64_t signal_bit(int signal) {
  return uint64_t{1} << (signal - 1);
}

/// The signal lines of /proc/PID/task/TID/status.
struct SignalStatus {
  uint64_t pending = 0;  ///< of the thread and of the process
  uint64_t blocked = 0;  ///< in force now: inside ppoll() and the like, the mask given to it
  uint64_t ignored = 0;
  uint64_t caught = 0;

  /// Pending, not blocked, and not thrown away by the kernel.
  [[nodiscard]] uint64_t deliverable() const;
};
Result<SignalStatus> read_signal_status(const Process& process, pid_t tid);

/// Fills `thread` from its stop, applies the fix-ups and writes them to the thread.
Status read_and_fix(const Process& process, FrozenThread& thread);

/// Just before the thread runs again: if a signal came meanwhile that the interrupted system call would have
/// returned EINTR for, it shall.
Status unfix_if_signalled(const Process& process, FrozenThread& thread);

Status set_signal_mask(pid_t tid, uint64_t mask);
Result<uint64_t> get_signal_mask(pid_t tid);

}  // namespace godwit::tracee
