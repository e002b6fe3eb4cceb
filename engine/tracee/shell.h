// The process being built on the destination: a bare child with the final pid, in which everything is made
// while the original still runs. Every method must be called on the shell's own thread (ShellThread runs
// closures there): it is the tracer, the parent, and it shares the shell's table of file descriptors
// (CLONE_FILES), so that a plain open() or dup2() on that thread makes a descriptor *of the shell*. SAFETY:
// hence that thread never logs and holds no descriptor of its own. If this engine or the thread dies before
// release(), the kernel kills the shell (PTRACE_O_EXITKILL, PDEATHSIG).
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/model/vma.h"
#include "engine/tracee/batch.h"
#include "engine/tracee/registers.h"

namespace godwit::tracee {

struct ShellOptions {
  pid_t pid = 0;                   ///< the pid that the process must have
  bool new_pid_namespace = false;  ///< inside one made for it (an init of ours is its pid 1 and ends with it)
  Nanos monotonic_offset{};        ///< what to add to this host's CLOCK_MONOTONIC ...
  Nanos boottime_offset{};         ///< ... and CLOCK_BOOTTIME: a time namespace is made (0, 0: none)
};

class Shell : public BatchRunner {
 public:
  /// Forks the bare process, maps the scratch, unmaps all else. Errors: Retry/System EEXIST when the pid is
  /// taken (the remedy names --pid-namespace new), Denied, Unsupported.
  static Result<std::unique_ptr<Shell>> spawn(const ShellOptions& options);
  /// Kills the shell unless it was released.
  ~Shell() override;

  [[nodiscard]] pid_t pid()
      const;  ///< as this engine sees it (differs from options.pid in a new pid namespace)
  [[nodiscard]] pid_t inner_pid() const;  ///< as the process sees itself

  /// Makes the thread `tid` (inner number), parked. Errors: System EEXIST when taken.
  Status create_thread(pid_t tid);
  /// Ends a thread that the source no longer has.
  Status end_thread(pid_t tid);
  [[nodiscard]] const std::vector<pid_t>& threads() const;  ///< inner tids, the leader first
  [[nodiscard]] pid_t outer_tid(pid_t inner) const;         ///< as ptrace and /proc of this engine want it

  /// Runs the batch on the thread with inner id `tid`. Data up to 256 KiB, any number of calls.
  Status run(pid_t tid, Batch& batch) override;

  /// The scratch must not stand where the process will have memory: moves away if it does. Call before
  /// mapping.
  Status keep_clear_of(const Layout& layout);
  [[nodiscard]] AddressRange scratch() const;

  /// ptrace of a parked thread, by inner tid.
  Status set_registers(pid_t tid, const Registers& registers);
  Status set_signal_mask(pid_t tid, uint64_t mask);

  /// Unmaps the scratch and lets every thread run from the registers set before. Nothing can fail after the
  /// first thread runs. After it the process is nobody's tracee. `syscall_insn`: address of a `syscall` in
  /// the final layout (vdso), through which the scratch is unmapped.
  Status release(RemoteAddr syscall_insn);

 private:
  struct State;
  explicit Shell(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// The thread that owns a shell. call() runs `work` on it and waits for the result; destruction kills an
/// unreleased shell and joins.
class ShellThread {
 public:
  static Result<std::unique_ptr<ShellThread>> start();
  ~ShellThread();
  Status call(const std::function<Status()>& work);

 private:
  struct State;
  explicit ShellThread(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace godwit::tracee
