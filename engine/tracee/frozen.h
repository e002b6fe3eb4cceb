// A frozen process: every thread in a ptrace stop, none running. RAII: finish() thaws and reports; the
// destructor is the best-effort path. If this engine dies, the kernel detaches all threads and the process
// runs on. One thread only: the one that froze is the tracer, and it alone may use the object.
#pragma once

#include <sys/types.h>

#include <vector>

#include "engine/base/result.h"
#include "engine/tracee/process.h"
#include "engine/tracee/registers.h"

namespace godwit::tracee {

struct FrozenThread {
  pid_t tid = 0;
  user_regs_struct
      original{};  ///< registers at the stop, after fix-ups (see below); thaw() puts these back if changed
  uint64_t signal_mask = 0;    ///< PTRACE_GETSIGMASK at the stop
  bool group_stopped = false;  ///< was in a SIGSTOP stop before the freeze
};

class Frozen {
 public:
  /// Seizes and interrupts all threads, listing them again until no new one appears.
  /// Fix-ups in `original`, so that a freeze is never visible:
  ///  - a system call that would return EINTR only because of this stop (epoll_wait and others that never
  ///  restart;
  ///    no deliverable signal pending) is made again: rip back over `syscall`, rax = orig_rax;
  ///  - a thread inside an rseq critical section is moved to its abort handler.
  /// Errors: TargetGone (also for a zombie), Denied (someone else traces it: the error names the tracer).
  static Result<Frozen> freeze(const Process& process);

  Frozen(Frozen&&) noexcept;
  Frozen& operator=(Frozen&&) = delete;
  ~Frozen();

  [[nodiscard]] const Process& process() const { return *process_; }
  [[nodiscard]] const std::vector<FrozenThread>& threads() const { return threads_; }
  [[nodiscard]] const FrozenThread& leader() const;

  /// Puts fixed-up registers back and lets every thread go. After it the process runs untraced.
  Status finish();

  /// Makes the stop outlive this engine: queues SIGSTOP. undo_stop() takes it back without the process seeing
  /// it.
  Status make_stop_permanent();
  Status undo_stop();
  /// Kills the process and reaps its threads' stops; non-leaders first. After it the object is empty.
  Status kill();

 private:
  Frozen() = default;
  const Process* process_ = nullptr;
  std::vector<FrozenThread> threads_;
};

}  // namespace godwit::tracee
