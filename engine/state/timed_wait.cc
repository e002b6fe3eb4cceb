#include "engine/state/timed_wait.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/syscall.h>

#include <algorithm>
#include <climits>

#include "engine/tracee/restart.h"

namespace godwit::state {
namespace {

using tracee::Batch;
using wire::TimedWait;

constexpr uint64_t kNoCall = ~0ULL;

/// KERNEL: a call counts its timeout from its own beginning; rounded up it never ends early.
int to_millis(Nanos left) {
  const int64_t millis = (left.count() + 999'999) / 1'000'000;
  return static_cast<int>(std::clamp<int64_t>(millis, 0, INT_MAX));
}

/// The process' clocks, asked on `tid`. ORDER: this engine's after them, so that a wait may seem to end later
/// than it does by the time between, never earlier.
Result<ClockLead> find_clock_lead(BuildContext& context, pid_t tid) {
  Batch batch;
  const auto monotonic = batch.reserve(sizeof(timespec)), boottime = batch.reserve(sizeof(timespec));
  batch.call(SYS_clock_gettime, {CLOCK_MONOTONIC, monotonic}, "clock_gettime");
  batch.call(SYS_clock_gettime, {CLOCK_BOOTTIME, boottime}, "clock_gettime");
  TRY(context.shell.run(tid, batch));
  const auto lead = [&](tracee::DataRef at, clockid_t clock) {
    const auto shown = batch.value<timespec>(at);
    return std::chrono::seconds(shown.tv_sec) + Nanos(shown.tv_nsec) - read_clock(clock);
  };
  return ClockLead{lead(monotonic, CLOCK_MONOTONIC), lead(boottime, CLOCK_BOOTTIME)};
}

Result<Nanos> left_of(BuildContext& context, pid_t tid, const TimedWait& wait) {
  if (wait.end_is_left()) return std::max(Nanos(wait.end()), Nanos());
  if (!context.clock_lead) context.clock_lead = TRY(find_clock_lead(context, tid));
  if (wait.clock() != CLOCK_MONOTONIC && wait.clock() != CLOCK_BOOTTIME)
    return fail(ErrorKind::kCorrupt, "take up a wait", fmt::format("thread {}", tid),
                fmt::format("clock {}", wait.clock()));
  const bool monotonic = wait.clock() == CLOCK_MONOTONIC;
  const Nanos now =
      read_clock(wait.clock()) + (monotonic ? context.clock_lead->monotonic : context.clock_lead->boottime);
  constexpr int64_t kForEver = INT64_MAX / 2;  // no overflow, whatever the peer says
  return std::max(Nanos(std::clamp<int64_t>(wait.end(), 0, kForEver)) - now, Nanos());
}

/// The same wait as the interrupted one, for what is left.
Result<Batch> shortened_call(const user_regs_struct& general, const TimedWait& wait, Nanos left) {
  Batch batch;
  const auto time = batch.put_value(to_timespec(left));
  switch (wait.kind()) {
    case TimedWait::SLEEP:
      batch.call(SYS_clock_nanosleep, {wait.clock(), 0, time, wait.rest_at()}, "clock_nanosleep");
      return batch;
    case TimedWait::FUTEX:
      batch.call(SYS_futex,
                 {general.rdi, FUTEX_WAIT | (general.rsi & FUTEX_PRIVATE_FLAG), general.rdx, time, 0, 0},
                 "futex");
      return batch;
    case TimedWait::POLL:
      batch.call(SYS_poll, {general.rdi, general.rsi, to_millis(left)}, "poll");
      return batch;
    default:
      return fail(ErrorKind::kCorrupt, "take up a wait", "",
                  fmt::format("kind {}", static_cast<int>(wait.kind())));
  }
}

}  // namespace

user_regs_struct capture_wait(const CaptureContext& context, const tracee::FrozenThread& thread,
                              wire::ThreadState& state) {
  user_regs_struct general = thread.original;
  const auto found = context.interrupted.find(thread.tid);
  if (found != context.interrupted.end()) {
    const InterruptedCall& call = found->second;
    if (call.number >= 0) general.orig_rax = static_cast<unsigned long long>(call.number);
    if (call.wait) {
      *state.mutable_wait() = *call.wait;
      return general;
    }
  }
  const bool remembered =
      static_cast<int64_t>(general.rax) == tracee::kRestartBlock || general.orig_rax == SYS_restart_syscall;
  return remembered ? tracee::restarted(context.memory, general) : general;
}

Status take_up_wait(BuildContext& context, const wire::ThreadState& state, user_regs_struct& general) {
  if (!state.has_wait()) return {};
  const Nanos left = TRY(left_of(context, state.tid(), state.wait()));
  if (state.wait().kind() == TimedWait::EPOLL) {
    general.r10 = static_cast<unsigned long long>(to_millis(left));
    return {};
  }
  Batch batch = TRY(shortened_call(general, state.wait(), left));
  const int64_t result = TRY(context.shell.interrupt_inside(state.tid(), batch));
  if (result == tracee::kRestartBlock) return {};
  // The wait is over (its time, its event, a futex word that has changed): this is what the thread is told.
  general.rax = static_cast<unsigned long long>(result);
  general.orig_rax = kNoCall;
  return {};
}

}  // namespace godwit::state
