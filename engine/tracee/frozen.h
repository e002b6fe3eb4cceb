// A frozen process: every thread in a ptrace stop, none running. RAII: finish() thaws and reports; the
// destructor is the best-effort path. If this engine dies, the kernel detaches all threads and the process
// runs on. One thread only: the one that froze is the tracer, and it alone may use the object.
#pragma once

#include <sys/types.h>

#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/tracee/process.h"
#include "engine/tracee/registers.h"

namespace godwit::tracee {

struct FrozenThread {
  pid_t tid = 0;
  /// Registers at the stop, after fix-ups (see below); the thread already has them.
  user_regs_struct original{};
  /// PTRACE_GETSIGMASK at the stop: outside ppoll() and the like, the program's own.
  uint64_t signal_mask = 0;
  bool group_stopped = false;  ///< was in a SIGSTOP stop before the freeze

  bool made_again = false;         ///< `original` repeats a system call that this stop interrupted, ...
  user_regs_struct interrupted{};  ///< ... which had these registers
};

class Frozen {
 public:
  static constexpr Nanos kLimit = std::chrono::seconds(2);  ///< for one thread to stop

  /// Seizes and interrupts all threads, listing them again until no new one appears.
  /// Fix-ups in `original`, so that a freeze is never visible:
  ///  - a system call that would return EINTR only because of this stop (epoll_wait and others that never
  ///  restart;
  ///    no deliverable signal pending) is made again: rip back over `syscall`, rax = orig_rax;
  ///  - a thread inside an rseq critical section is moved to its abort handler.
  /// They are written to the threads at once: the death of this engine does not show either.
  /// `process` must outlive the result. On failure the process runs on.
  /// Errors: TargetGone (also for a zombie), Denied (someone else traces it: the error names the tracer),
  /// Refused (the main thread has ended, others run), Retry (a thread cannot stop now, such as a parent in
  /// vfork), Timeout.
  static Result<Frozen> freeze(const Process& process);

  /// The same for one thread alone, the others run on. Of the result only threads(), find(), set_original()
  /// and finish() may be used. Errors: TargetGone when it has ended, Denied, Retry, Timeout.
  static Result<Frozen> freeze_thread(const Process& process, pid_t tid);

  Frozen(Frozen&&) noexcept;
  Frozen& operator=(Frozen&&) = delete;
  ~Frozen();

  [[nodiscard]] const Process& process() const { return *process_; }
  [[nodiscard]] const std::vector<FrozenThread>& threads() const { return threads_; }
  [[nodiscard]] const FrozenThread& leader() const;
  [[nodiscard]] const FrozenThread* find(pid_t tid) const;

  /// Lets every thread go. After it the process runs untraced, or is stopped if it was before.
  /// Errors: TargetGone when it was killed meanwhile.
  Status finish();

  /// What the thread goes on with instead of `original`: its own call with another timeout.
  Status set_original(pid_t tid, const user_regs_struct& general);

  /// Makes the stop outlive this engine: queues SIGSTOP, which the threads take before they run another
  /// instruction. Between this and undo_stop() nothing may run in the process (no injection).
  Status make_stop_permanent();
  /// Takes it back without the process seeing a signal: this engine's own, or, in a process that a dead
  /// engine left stopped, that one. The process stays frozen. Pending signals may have been delivered by it:
  /// `original` follows.
  Status undo_stop();
  [[nodiscard]] bool stop_is_permanent() const { return stop_queued_; }

  /// Kills the process and reaps its threads' stops; non-leaders first. After it the object is empty.
  Status kill();

  /// For a thread that ran under this tracer and stands in whatever stop: brings it, without an instruction
  /// of its own, to the plain stop of a freeze (delivering `signal` if not 0), and reads its registers and
  /// mask again.
  Status settle(pid_t tid, int signal = 0);

 private:
  Frozen() = default;
  FrozenThread* find_mutable(pid_t tid);
  Status swallow(FrozenThread& thread, int signal);

  const Process* process_ = nullptr;
  std::vector<FrozenThread> threads_;
  bool stop_queued_ = false;
};

}  // namespace godwit::tracee
