// Room "threads". While the source runs the threads are created on the shell and parked; in the freeze they
// get their registers and what the kernel keeps for each.
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "engine/base/files.h"
#include "engine/base/missing_uapi.h"
#include "engine/state/process_rooms.h"
#include "engine/state/scheduling.h"
#include "engine/state/timed_wait.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {

constexpr int kPrGetTidAddress = 40;  // linux/prctl.h

namespace {

pid_t innermost(std::string_view status, pid_t tid) {
  const auto ids = split(field(status, "NSpid:").value_or(""), '\t');
  if (ids.empty()) return tid;
  return static_cast<pid_t>(parse_number(ids.back()).value_or(static_cast<uint64_t>(tid)));
}

}  // namespace

Result<pid_t> inner_tid(const tracee::Process& process, pid_t tid) {
  return innermost(TRY(process.status(tid)), tid);
}

Result<const ThreadView*> view_of(CaptureContext& context, pid_t tid) {
  if (const auto known = context.views.find(tid); known != context.views.end()) return &known->second;
  tracee::Batch batch;
  const auto stack = batch.reserve(sizeof(stack_t));
  const auto clear_tid = batch.reserve(sizeof(uint64_t));
  batch.call(SYS_sigaltstack, {0, stack}, "read the alternate signal stack");
  batch.call(SYS_prctl, {kPrGetTidAddress, clear_tid}, "prctl(PR_GET_TID_ADDRESS)");
  const size_t slack = batch.call(SYS_prctl, {PR_GET_TIMERSLACK}, "prctl(PR_GET_TIMERSLACK)");
  const size_t bits = batch.call(SYS_prctl, {PR_GET_SECUREBITS}, "prctl(PR_GET_SECUREBITS)");
  const size_t dumpable = batch.call(SYS_prctl, {PR_GET_DUMPABLE}, "prctl(PR_GET_DUMPABLE)");
  TRY(context.runner->run(tid, batch));
  ThreadView view;
  view.status = TRY(context.process.status(tid));
  view.inner = innermost(view.status, tid);
  const auto bytes = batch.bytes(stack);
  view.alternate_stack.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  view.clear_child_tid = batch.value<uint64_t>(clear_tid);
  view.timer_slack = static_cast<uint64_t>(batch.result(slack));
  view.securebits = static_cast<uint32_t>(batch.result(bits));
  view.dumpable = static_cast<int>(batch.result(dumpable));
  return &context.views.emplace(tid, std::move(view)).first->second;
}

namespace {

using tracee::Batch;
constexpr std::string_view kName = "threads";
constexpr int kIoPriorityOfProcess = 1;  // IOPRIO_WHO_PROCESS, linux/ioprio.h

// ---- capture
// -----------------------------------------------------------------------------------------------------

Status capture_kernel_view(wire::ThreadState& state, pid_t tid) {
  const auto rseq = TRY(tracee::read_rseq(tid));
  state.set_rseq_address(rseq.address);
  state.set_rseq_size(rseq.size);
  state.set_rseq_signature(rseq.signature);
  void* head = nullptr;
  size_t size = 0;
  if (::syscall(SYS_get_robust_list, tid, &head, &size) != 0)
    return fail_errno("get_robust_list", fmt::format("tid {}", tid));
  state.set_robust_list(reinterpret_cast<uint64_t>(head));
  state.set_robust_list_size(size);
  return capture_scheduling(tid, state);
}

Status capture_thread(CaptureContext& context, const tracee::FrozenThread& thread, wire::ThreadState& state) {
  const ThreadView& view = *TRY(view_of(context, thread.tid));
  state.set_tid(view.inner);
  state.set_alternate_stack(view.alternate_stack);
  state.set_clear_child_tid(view.clear_child_tid);
  state.set_timer_slack(view.timer_slack);
  state.set_name(
      std::string(trim(TRY(read_file(context.process.path(fmt::format("task/{}/comm", thread.tid)))))));
  const tracee::Registers registers = TRY(tracee::read_registers(thread.tid));
  // The fixed-up ones of the freeze, not those that an injection may have left.
  state.set_general(bytes_of(capture_wait(context, thread, state)));
  state.set_xstate(registers.xstate.data(), registers.xstate.size());
  state.set_signal_mask(thread.signal_mask);
  return capture_kernel_view(state, thread.tid);
}

Result<std::string> capture(CaptureContext& context) {
  wire::ThreadsState state;
  if (context.frozen == nullptr) {
    for (const pid_t tid : TRY(context.process.threads())) {
      auto inner = inner_tid(context.process, tid);
      if (inner.ok()) state.add_threads()->set_tid(inner.value());  // else it ended meanwhile
    }
    return state.SerializeAsString();
  }
  TRY(capture_thread(context, context.frozen->leader(), *state.add_threads()));
  for (const tracee::FrozenThread& thread : context.frozen->threads()) {
    if (thread.tid != context.pid()) TRY(capture_thread(context, thread, *state.add_threads()));
  }
  return state.SerializeAsString();
}

// ---- build
// -------------------------------------------------------------------------------------------------------

/// The shell has exactly the threads of `state` afterwards.
Status match_threads(BuildContext& context, const wire::ThreadsState& state) {
  std::set<pid_t> wanted;
  for (const auto& thread : state.threads()) wanted.insert(thread.tid());
  const std::vector<pid_t> there = context.shell.threads();
  for (const pid_t tid : there) {
    if (wanted.count(tid) == 0 && tid != context.pid) TRY(context.shell.end_thread(tid));
  }
  for (const pid_t tid : wanted) {
    if (std::find(there.begin(), there.end(), tid) != there.end()) continue;
    calm(context.shell, context.pid);
    TRY(context.shell.create_thread(tid));
  }
  return {};
}

Status prepare(BuildContext& context, std::string_view message) {
  return match_threads(context, TRY(parse_message<wire::ThreadsState>(kName, message)));
}

Status build_own_view(BuildContext& context, const wire::ThreadState& state) {
  Batch batch;
  batch.call(SYS_set_tid_address, {state.clear_child_tid()}, "set_tid_address");
  if (state.robust_list() != 0)
    batch.call(SYS_set_robust_list, {state.robust_list(), state.robust_list_size()}, "set_robust_list");
  if (state.rseq_address() != 0)
    batch.call(SYS_rseq, {state.rseq_address(), state.rseq_size(), 0, state.rseq_signature()},
               "register rseq");
  auto stack = TRY(value_of<stack_t>(kName, state.alternate_stack()));
  stack.ss_flags &= ~SS_ONSTACK;  // follows from the stack pointer
  batch.call(SYS_sigaltstack, {batch.put_value(stack), 0}, "sigaltstack");
  batch.call(SYS_prctl, {PR_SET_NAME, batch.put_string(state.name())}, "prctl(PR_SET_NAME)");
  batch.call(SYS_prctl, {PR_SET_TIMERSLACK, state.timer_slack()}, "prctl(PR_SET_TIMERSLACK)");
  if (state.io_priority() != 0)
    batch.call(SYS_ioprio_set, {kIoPriorityOfProcess, 0, state.io_priority()}, "ioprio_set");
  return context.shell.run(state.tid(), batch);
}

Status finish_thread(BuildContext& context, const wire::ThreadState& state) {
  TRY(build_own_view(context, state));
  // ORDER: now, so that what this host refuses is refused before COMMIT; and again at the very end, for until
  // then there is more to do.
  TRY(build_scheduling(context.shell, state));
  hurry(context.shell, state.tid());
  context.at_resume.push_back([&context, state] { return build_scheduling(context.shell, state); });
  tracee::Registers registers;
  registers.general = TRY(value_of<user_regs_struct>(kName, state.general()));
  const auto xstate = std::as_bytes(std::span(state.xstate()));
  registers.xstate.assign(xstate.begin(), xstate.end());
  TRY(take_up_wait(context, state, registers.general));
  TRY(context.shell.set_registers(state.tid(), registers));
  return context.shell.set_signal_mask(state.tid(), state.signal_mask());
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::ThreadsState>(kName, message));
  TRY(match_threads(context, state));
  for (const auto& thread : state.threads()) TRY(finish_thread(context, thread));
  return {};
}

Status check(const CheckContext& context, Findings& findings) {
  for (const pid_t tid : TRY(context.process.threads())) {
    const auto status = context.process.status(tid);
    if (!status.ok()) continue;  // it ended
    if (field(status.value(), "Seccomp:").value_or("0") != "0")
      findings.push_back({std::string(kName), fmt::format("thread {}", tid), "a seccomp filter",
                          "filters cannot be read back and carried yet",
                          "run it without seccomp (systemd: SystemCallFilter=)", true});
    const auto tracer = field(status.value(), "TracerPid:").value_or("0");
    if (tracer != "0")
      findings.push_back({std::string(kName), fmt::format("thread {}", tid),
                          fmt::format("traced by pid {}", tracer), "a process has one tracer",
                          "end the debugger", true});
  }
  return {};
}

}  // namespace

const Room kThreadsRoom{kName, true, check, capture, prepare, finish, true};

}  // namespace godwit::state
