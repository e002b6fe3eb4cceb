// Room "signals": handlers, and what is pending with all its values.
#include <fmt/format.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <array>
#include <map>

#include "engine/state/process_rooms.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {
namespace {

using tracee::Batch;
constexpr std::string_view kName = "signals";
constexpr int kSignals = 64;

/// struct sigaction as the kernel of x86-64 has it.
struct KernelAction {
  uint64_t handler, flags, restorer, mask;
};

Status capture_actions(CaptureContext& context, wire::SignalsState& state) {
  Batch batch;
  std::array<tracee::DataRef, kSignals + 1> at;
  for (int signal = 1; signal <= kSignals; ++signal) {
    at[static_cast<size_t>(signal)] = batch.reserve(sizeof(KernelAction));
    batch.call(SYS_rt_sigaction, {signal, 0, at[static_cast<size_t>(signal)], 8}, "read a signal handler");
  }
  TRY(context.runner->run(context.pid(), batch));
  for (int signal = 1; signal <= kSignals; ++signal) {
    const auto action = batch.value<KernelAction>(at[static_cast<size_t>(signal)]);
    if (action.handler == 0 && action.flags == 0 && action.mask == 0) continue;
    auto* entry = state.add_actions();
    entry->set_signal(static_cast<uint32_t>(signal));
    entry->set_action(bytes_of(action));
  }
  return {};
}

/// `tid` of 0 in the message means the queue of the process, which any thread shows.
Status capture_queue(wire::SignalsState& state, pid_t tid, pid_t inner, bool shared) {
  __ptrace_peeksiginfo_args args{};
  args.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
  std::array<siginfo_t, 16> infos{};
  args.nr = static_cast<int>(infos.size());
  for (;;) {
    const long got = ::ptrace(PTRACE_PEEKSIGINFO, tid, &args, infos.data());
    if (got < 0) return fail_errno("ptrace(PTRACE_PEEKSIGINFO)", fmt::format("tid {}", tid));
    for (long i = 0; i < got; ++i) {
      auto* entry = state.add_pending();
      entry->set_tid(shared ? 0 : inner);
      entry->set_info(bytes_of(infos[static_cast<size_t>(i)]));
    }
    if (got < args.nr) return {};
    args.off += static_cast<uint64_t>(got);
  }
}

Result<std::string> capture(CaptureContext& context) {
  wire::SignalsState state;
  TRY(capture_actions(context, state));
  for (const tracee::FrozenThread& thread : context.frozen->threads()) {
    state.set_stopped(state.stopped() || thread.group_stopped);
    TRY(capture_queue(state, thread.tid, TRY(view_of(context, thread.tid))->inner, false));
  }
  TRY(capture_queue(state, context.frozen->leader().tid, 0, true));
  return state.SerializeAsString();
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::SignalsState>(kName, message));
  Batch batch;
  // KERNEL: a new process keeps what its maker ignores, so the default is set too, for all that have no
  // entry.
  std::array<KernelAction, kSignals + 1> actions{};
  for (const auto& entry : state.actions()) {
    if (entry.signal() == 0 || entry.signal() > kSignals)
      return fail(ErrorKind::kCorrupt, "set a signal handler", fmt::format("signal {}", entry.signal()));
    actions[entry.signal()] = TRY(value_of<KernelAction>(kName, entry.action()));
  }
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    const KernelAction& action = actions[static_cast<size_t>(signal)];
    batch.call(SYS_rt_sigaction, {signal, batch.put_value(action), 0, 8},
               fmt::format("set the handler of signal {}", signal));
  }
  // ORDER: handlers first, for a signal that is ignored would be dropped; every thread of the shell blocks
  // all signals. The process queues them to itself, and a thread its own to itself: only then does the kernel
  // take any siginfo as it is (that of a tgkill() from nobody else, not even of the same process).
  std::map<pid_t, Batch> own;
  for (const auto& entry : state.pending()) {
    const auto info = TRY(value_of<siginfo_t>(kName, entry.info()));
    if (entry.tid() == 0) {
      batch.call(SYS_rt_sigqueueinfo, {context.pid, info.si_signo, batch.put_value(info)},
                 fmt::format("queue signal {}", info.si_signo));
      continue;
    }
    Batch& queue = own[entry.tid()];
    queue.call(SYS_rt_tgsigqueueinfo, {context.pid, entry.tid(), info.si_signo, queue.put_value(info)},
               fmt::format("queue signal {} for thread {}", info.si_signo, entry.tid()));
  }
  if (!batch.empty()) TRY(context.run(batch));
  for (auto& [tid, queue] : own) TRY(context.shell.run(tid, queue));
  if (state.stopped()) {
    const pid_t outer = context.shell.pid();
    context.at_resume.push_back([outer]() -> Status {
      if (::kill(outer, SIGSTOP) != 0)
        return fail_errno("stop a process that was stopped", fmt::format("pid {}", outer));
      return {};
    });
  }
  return {};
}

Status check(const CheckContext&, Findings&) {
  return {};
}
Status prepare(BuildContext&, std::string_view) {
  return {};
}

}  // namespace

/// After the threads are there: a signal may be pending for one of them.
const Room kSignalsRoom{kName, false, check, capture, prepare, finish, true};

}  // namespace godwit::state
