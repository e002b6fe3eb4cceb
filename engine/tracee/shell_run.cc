// Running batches on the threads of a shell, and the stops that come of it.
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>

#include "engine/tracee/shell_state.h"

namespace godwit::tracee {
namespace {

constexpr int event_of(int status) {
  return status >> 16;
}

bool is_fault(int signal) {
  return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE || signal == SIGSYS;
}

}  // namespace

Status first_failure(const std::vector<Call>& calls, const std::string& subject) {
  for (const Call& call : calls) {
    // Only the last page of numbers are errors: addresses and sizes may look negative.
    if (call.may_fail || call.result >= 0 || call.result < -4095) continue;
    return fail_errno(call.what.empty() ? fmt::format("system call {}", call.nr) : call.what, subject,
                      static_cast<int>(-call.result));
  }
  return {};
}

Status Shell::State::resume(const ShellTask& task, int request) {
  if (::ptrace(static_cast<__ptrace_request>(request), task.outer, nullptr, nullptr) != 0)
    return fail_errno(fmt::format("ptrace({})", request), name(task));
  return {};
}

/// What `task` does next: stop or end.
Result<int> Shell::State::wait_status(ShellTask& task) {
  int status = 0;
  while (::waitpid(task.outer, &status, __WALL) < 0)
    if (errno != EINTR) return fail(ErrorKind::kTargetGone, "waitpid", name(task), "the shell has died");
  task.ended = !WIFSTOPPED(status);
  return status;
}

/// The status of the next stop of `task`.
Result<int> Shell::State::wait_stop(ShellTask& task) {
  const int status = TRY(wait_status(task));
  if (task.ended)
    return fail(ErrorKind::kTargetGone, "run a batch", name(task),
                fmt::format("the shell has died, wait status {:#x}", status));
  return status;
}

/// Until the stub's own SIGTRAP. Whatever else stops the thread (SIGSTOP or SIGCONT from outside) is passed
/// over.
Status Shell::State::wait_batch(ShellTask& task) {
  for (;;) {
    const int status = TRY(wait_stop(task));
    const int event = event_of(status);
    if (event == PTRACE_EVENT_CLONE) {
      unsigned long made = 0;
      if (::ptrace(PTRACE_GETEVENTMSG, task.outer, nullptr, &made) != 0)
        return fail_errno("ptrace(GETEVENTMSG)", name(task));
      born = static_cast<pid_t>(made);
    } else if (event == 0 && WSTOPSIG(status) == SIGTRAP && scratch.done()) {
      return {};
    } else if (event == 0 && is_fault(WSTOPSIG(status))) {
      return fail(ErrorKind::kBug, "run a batch", name(task),
                  fmt::format("signal {} in the scratch at {}: a call has damaged it", WSTOPSIG(status),
                              scratch.range()));
    }
    TRY(resume(task, PTRACE_CONT));
  }
}

/// `request`: how the thread is let go.
Status Shell::State::begin(ShellTask& task, size_t count, int request) {
  user_regs_struct regs = base;
  regs.rip = scratch.stub().value();
  regs.rsp = scratch.stack_top().value();
  regs.rbx = scratch.done_word().value();
  regs.r12 = scratch.calls().value();
  regs.r13 = count;
  regs.r14 = static_cast<uint64_t>(leader().inner);
  regs.r15 = static_cast<uint64_t>(task.inner);
  TRY(write_general(task.outer, regs));
  task.in_place = false;
  task.parked = false;
  return resume(task, request);
}

Status Shell::State::run(ShellTask& task, Batch& batch) {
  if (batch.data().size() > ShellScratch::kMaxData)
    return fail(ErrorKind::kBug, "run a batch", name(task),
                fmt::format("{} bytes of data, at most {}", batch.data().size(), ShellScratch::kMaxData));
  scratch.put_data(batch);
  std::vector<Call>& calls = batch.calls();
  for (size_t first = 0; first < calls.size(); first += ShellScratch::kCallsPerRound) {
    const size_t count = std::min(calls.size() - first, ShellScratch::kCallsPerRound);
    scratch.put_calls(batch, first, count);
    TRY(begin(task, count, PTRACE_CONT));
    TRY(wait_batch(task));
    scratch.take_results(batch, first, count);
  }
  scratch.take_data(batch);
  return first_failure(calls, name(task));
}

/// From PTRACE_SYSCALL to the entry of the next system call.
Status Shell::State::run_to_call(ShellTask& task) {
  while (WSTOPSIG(TRY(wait_stop(task))) != (SIGTRAP | 0x80)) TRY(resume(task, PTRACE_SYSCALL));
  return {};
}

/// KERNEL: every sleep looks for pending work once it has set itself up, and gives up at once; the interrupt
/// that park() asks for at the entry of the call is such work. It leaves the thread behind the call, with the
/// result in rax.
Result<int64_t> Shell::State::interrupt_inside(ShellTask& task, Batch& batch) {
  if (batch.calls().size() != 1 || batch.data().size() > ShellScratch::kMaxData)
    return fail(ErrorKind::kBug, "interrupt a call", name(task), "not one call");
  scratch.put_data(batch);
  scratch.put_calls(batch, 0, 1);
  TRY(begin(task, 1, PTRACE_SYSCALL));
  TRY(run_to_call(task));
  TRY(park(task));
  return static_cast<int64_t>(TRY(read_general(task.outer)).rax);
}

/// Whoever uses a thread begins here.
Status Shell::State::settle(ShellTask& task) {
  if (!task.newborn) return {};
  TRY(wait_stop(task));
  task.newborn = false;
  return {};
}

/// From any ptrace stop into PTRACE_EVENT_STOP without a step of the program.
/// KERNEL: the interrupt is taken within the same delivery of signals as the stop it leaves, and registers
/// written before or after stay as written; restarting of system calls happens behind it.
Status Shell::State::park(ShellTask& task) {
  if (task.parked) return {};
  TRY(resume(task, PTRACE_INTERRUPT));
  for (;;) {
    TRY(resume(task, PTRACE_CONT));
    if (event_of(TRY(wait_stop(task))) == PTRACE_EVENT_STOP) break;
  }
  task.parked = true;
  return {};
}

}  // namespace godwit::tracee
