// The inside of Shell, shared by its sources.
#pragma once

#include <optional>

#include "engine/tracee/shell.h"
#include "engine/tracee/shell_scratch.h"

namespace godwit::tracee {

struct ShellTask {
  pid_t inner = 0;
  pid_t outer = 0;
  /// In PTRACE_EVENT_STOP, where a detach by the kernel (engine dead) lets it run. In the stop of the stub's
  /// SIGTRAP that signal would be delivered instead.
  bool parked = false;
  bool newborn = false;   ///< its first stop was not yet waited for
  bool in_place = false;  ///< the thread's registers are the final ones, no batch ran since
  std::optional<user_regs_struct> final_registers;
  std::optional<uint64_t> final_mask;
  bool ended = false;  ///< its end was reported to us: its number may belong to someone else by now
};

struct Shell::State {
  explicit State(ShellScratch s) : scratch(std::move(s)) {}
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  ShellScratch scratch;
  std::vector<ShellTask> tasks;  ///< the leader first, then in the order of creation
  pid_t init = 0;                ///< outer pid of the namespace's init, if it is ours
  uint64_t options = 0;          ///< of ptrace, as every thread has them
  user_regs_struct base{};       ///< registers with which batches run
  bool released = false;
  pid_t born = 0;  ///< outer tid of the thread that the running batch has made

  [[nodiscard]] ShellTask& leader() { return tasks.front(); }
  Result<ShellTask*> task(pid_t inner);
  [[nodiscard]] std::string name(const ShellTask& task) const;

  Result<RemoteAddr> reserve_hole(Layout layout, uint64_t margin);

  // shell_run.cc
  Status run(ShellTask& task, Batch& batch);
  Result<int64_t> interrupt_inside(ShellTask& task, Batch& batch);
  Status begin(ShellTask& task, size_t count, int request);
  Status wait_batch(ShellTask& task);
  Result<int> wait_status(ShellTask& task);
  Result<int> wait_stop(ShellTask& task);
  Status resume(const ShellTask& task, int request);
  Status run_to_call(ShellTask& task);
  Status park(ShellTask& task);
  Status settle(ShellTask& task);

  // shell_release.cc
  Status check_complete(RemoteAddr syscall_insn);
  Status put_final(ShellTask& task);
  Status unmap_scratch(RemoteAddr syscall_insn);
  Status commit();
};

/// The first of the batch's calls that failed and may not, as an error on `subject`.
Status first_failure(const std::vector<Call>& calls, const std::string& subject);

}  // namespace godwit::tracee
