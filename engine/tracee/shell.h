// The process being built on the destination: a bare child with the final pid, in which everything is made
// while the original still runs. Every method of Shell must be called on the shell's own thread (ShellThread
// runs closures there): it is the tracer, the parent, and it shares the shell's table of file descriptors
// (CLONE_FILES), so that a plain open() or dup2() on that thread makes a descriptor *of the shell*. SAFETY:
// hence that thread never logs and holds no descriptor of its own, and makes no thread (after
// a spawn with namespaces the kernel refuses).
//
// If this engine or the thread dies at any instant before release() commits, the kernel kills the shell
// (PTRACE_O_EXITKILL; before the seize, the end of file of a pipe). After that instant it lives on without
// us. The shell has no parent-death signal, and the process must get none: its parent is the ShellThread,
// whose end would send it. Session, process group, credentials, limits, cgroup, umask, directories,
// scheduling and namespaces are the engine's until a room changes them. The released process stays a child of
// this engine: see children() and reap(). What the engine ignores, the shell ignores until a room sets it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <span>
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
  /// Data of one batch; the number of calls has no limit.
  static constexpr size_t kMaxBatchData = 512 << 10;

  /// Forks the bare process, maps the scratch, unmaps all else; signals blocked, handlers default, no
  /// descriptors. Once per ShellThread. Errors: System EEXIST when the pid is taken (the remedy names
  /// --pid-namespace new), Denied, Unsupported.
  static Result<std::unique_ptr<Shell>> spawn(const ShellOptions& options);
  /// Kills the shell and reaps it, unless it was released. On the shell's thread, or after that has ended.
  ~Shell() override;

  [[nodiscard]] pid_t pid() const;  ///< as this engine sees it (differs from inner_pid in a new namespace)
  [[nodiscard]] pid_t inner_pid() const;  ///< as the process sees itself

  /// Makes the thread `tid` (inner number), parked, all signals blocked. Errors: System EEXIST when taken.
  Status create_thread(pid_t tid);
  /// Ends a thread that the source no longer has; its clear_child_tid and robust list are dropped unread.
  Status end_thread(pid_t tid);
  [[nodiscard]] std::vector<pid_t> threads() const;  ///< inner tids, the leader first, then as they were made
  [[nodiscard]] pid_t outer_tid(pid_t inner) const;  ///< for ptrace (it is stopped) and /proc; 0 if unknown

  /// Runs the batch on the thread with inner id `tid`; blocks until it is through. The calls run with all
  /// signals but SIGTRAP blocked, so pending signals stay pending, and dispositions are left alone. Registers
  /// set before are kept for the release. Errors: as BatchRunner; TargetGone; Bug for more data than
  /// kMaxBatchData.
  Status run(pid_t tid, Batch& batch) override;

  /// Has the thread make the one call of `batch` with an interrupt already pending, and stop when the call
  /// gives up for it: -516 (ERESTART_RESTARTBLOCK) means that this kernel now remembers how to go on with the
  /// call, and does so at the release if the registers set are those of the interrupted thread, -516 in rax.
  /// Any other result is final. Calls that run on the thread afterwards leave that memory alone, unless they
  /// sleep themselves.
  Result<int64_t> interrupt_inside(pid_t tid, Batch& batch);

  /// The scratch must not stand where the process will have memory: moves it into the largest hole of
  /// `layout` when it is there or near (stacks grow). Call before mapping.
  Status keep_clear_of(const Layout& layout);
  [[nodiscard]] AddressRange scratch() const;

  /// What a thread (inner tid) begins to run with, orig_rax and -ERESTART values of rax included: the kernel
  /// restarts an interrupted system call at the release as it would after a stop. Refused at once if the
  /// kernel refuses the values. -516 (ERESTART_RESTARTBLOCK) restarts through a block that a new thread
  /// lacks, and gives EINTR, unless interrupt_inside() has made one.
  Status set_registers(pid_t tid, const Registers& registers);
  Status set_signal_mask(pid_t tid, uint64_t mask);

  /// Unmaps the scratch and lets every thread run from the registers and mask set before (Bug if a thread has
  /// none). Nothing can fail after the first thread runs. After it the process is nobody's tracee, and the
  /// descriptors of this thread are its own again (none). `syscall_insn`: address of a `syscall` instruction
  /// in the final layout (vdso), through which the scratch is unmapped.
  Status release(RemoteAddr syscall_insn);
  [[nodiscard]] bool released() const;

  /// What this engine has to reap once released: the process and, in a new pid namespace, our init.
  [[nodiscard]] std::vector<pid_t> children() const;

 private:
  struct State;
  explicit Shell(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Reaps those of `pids` that have ended and returns them; never blocks. Any thread of the engine.
/// SAFETY: waitpid(-1) must not be used in this engine: it would take the stops of a shell being built from
/// its thread, as the children and tracees of one thread are everybody's to wait for.
std::vector<pid_t> reap(std::span<const pid_t> pids);

/// The thread that owns one shell. call() runs `work` on it and waits for the result; destruction ends the
/// thread, upon which the kernel kills an unreleased shell. All signals are blocked on it.
class ShellThread {
 public:
  static Result<std::unique_ptr<ShellThread>> start();
  ~ShellThread();
  /// Any thread, one at a time; from the thread itself it runs `work` at once.
  Status call(const std::function<Status()>& work);

 private:
  struct State;
  explicit ShellThread(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace godwit::tracee
