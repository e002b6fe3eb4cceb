// The last steps of a shell: from a tracee that dies with its engine to a process that runs by itself.
#include <fmt/format.h>
#include <linux/close_range.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "engine/tracee/shell_state.h"

namespace godwit::tracee {

Status Shell::State::check_complete(RemoteAddr syscall_insn) {
  for (const ShellTask& task : tasks)
    if (!task.final_registers || !task.final_mask)
      return fail(ErrorKind::kBug, "release", name(task),
                  task.final_registers ? "its signal mask was not set" : "its registers were not set");
  errno = 0;
  const long word = ::ptrace(PTRACE_PEEKTEXT, leader().outer, syscall_insn.value(), nullptr);
  if (errno != 0) return fail_errno(fmt::format("read the instruction at {}", syscall_insn), name(leader()));
  if ((word & 0xffff) != 0x050f)
    return fail(ErrorKind::kBug, "release", name(leader()), fmt::format("no `syscall` at {}", syscall_insn));
  return {};
}

/// Only what is not yet as it will be.
Status Shell::State::put_final(ShellTask& task) {
  TRY(settle(task));
  TRY(park(task));
  if (!task.in_place) TRY(write_general(task.outer, *task.final_registers));
  task.in_place = true;
  if (::ptrace(PTRACE_SETSIGMASK, task.outer, sizeof(uint64_t), &*task.final_mask) != 0)
    return fail_errno("ptrace(SETSIGMASK)", name(task));
  return {};
}

/// From outside the scratch, on the leader; ends parked.
/// KERNEL: not by a single step, which forces SIGTRAP and so resets a SIGTRAP that the process ignores. The
/// thread is stopped at the system call's entry and told to stop again before it returns to the program.
Status Shell::State::unmap_scratch(RemoteAddr syscall_insn) {
  ShellTask& task = leader();
  user_regs_struct regs = base;
  regs.rip = syscall_insn.value();
  regs.rsp = 0;
  regs.rax = SYS_munmap;
  regs.rdi = scratch.range().start.value();
  regs.rsi = scratch.range().size();
  TRY(write_general(task.outer, regs));
  task.in_place = false;
  task.parked = false;
  TRY(resume(task, PTRACE_SYSCALL));
  TRY(run_to_call(task));
  TRY(park(task));
  const user_regs_struct after = TRY(read_general(task.outer));
  if (after.rax != 0)
    return fail_errno("munmap(scratch)", name(task), static_cast<int>(-static_cast<int64_t>(after.rax)));
  return {};
}

/// The one step that cannot be taken back.
/// ORDER: EXITKILL goes first from the leader, then in the order of creation. KERNEL: when a tracer dies its
/// tracees are let go newest first, each with EXITKILL taking the whole process along; so at every instant
/// before the last option is cleared the death of this engine kills the process before a thread of it can
/// run.
Status Shell::State::commit() {
  const uint64_t without = options & ~uint64_t{PTRACE_O_EXITKILL};
  for (const ShellTask& task : tasks)
    if (::ptrace(PTRACE_SETOPTIONS, task.outer, nullptr, without) != 0)
      return fail_errno("ptrace(SETOPTIONS)", name(task));
  released = true;
  // An error here can only mean that someone has killed the process meanwhile.
  for (const ShellTask& task : tasks) ::ptrace(PTRACE_DETACH, task.outer, nullptr, nullptr);
  return {};
}

Status Shell::release(RemoteAddr syscall_insn) {
  State& s = *state_;
  TRY(s.task(inner_pid()));
  TRY(s.check_complete(syscall_insn));
  for (ShellTask& task : s.tasks)
    if (&task != &s.leader()) TRY(s.put_final(task));
  TRY(s.unmap_scratch(syscall_insn));
  TRY(s.put_final(s.leader()));
  // ORDER: before a thread runs. Afterwards a descriptor opened here would appear in the process, and its own
  // closes would not end a connection that this thread still held.
  if (::syscall(SYS_close_range, 0U, ~0U, CLOSE_RANGE_UNSHARE) != 0)
    return fail_errno("close_range(CLOSE_RANGE_UNSHARE)", "the shell's thread");
  return s.commit();
}

}  // namespace godwit::tracee
