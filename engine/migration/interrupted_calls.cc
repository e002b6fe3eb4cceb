#include "engine/migration/interrupted_calls.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/base/log.h"
#include "engine/tracee/restart.h"

namespace godwit::migration {
namespace {

using ebpf::RestartBlock;
using ebpf::RestartKind;
using wire::TimedWait;

constexpr int kNoPid = 0;

bool in_restart_block(const tracee::FrozenThread& thread) {
  return static_cast<int64_t>(thread.original.rax) == tracee::kRestartBlock &&
         static_cast<int64_t>(thread.original.orig_rax) >= 0;
}

/// epoll_wait() and epoll_pwait() with a timeout: milliseconds, in the fourth argument.
bool repeats_epoll(const tracee::FrozenThread& thread) {
  const bool epoll = thread.original.rax == SYS_epoll_wait || thread.original.rax == SYS_epoll_pwait;
  return thread.made_again && epoll && static_cast<int>(thread.original.r10) > 0;
}

/// The kind by the number, where the kernel hides the names of its functions.
RestartKind kind_of(const RestartBlock& block, long number) {
  if (block.kind != RestartKind::kUnnamed) return block.kind;
  switch (number) {
    case SYS_nanosleep:
      return RestartKind::kNanosleep;
    case SYS_futex:
      return RestartKind::kFutexWait;
    case SYS_poll:
      return RestartKind::kPoll;
    default:
      return RestartKind::kUnnamed;  // clock_nanosleep() has several
  }
}

/// KERNEL: the number of a process' CPU clock holds the pid, inverted, above three bits of kind (2: scheduler
/// time). Pid 0 is the caller; that of a process is asked from outside.
clockid_t cpu_clock_of(pid_t pid, clockid_t clock) {
  const bool own = (~clock >> 3) == kNoPid;
  return own ? static_cast<clockid_t>((~static_cast<unsigned>(pid) << 3) |
                                      (static_cast<unsigned>(clock) & 7U))
             : clock;
}

/// KERNEL: a sleep that is too long to count ends at the largest number there is.
Nanos add(Nanos time, int64_t offset) {
  int64_t sum = 0;
  const bool overflow = __builtin_add_overflow(time.count(), offset, &sum);
  return overflow ? Nanos::max() : Nanos(sum);
}

TimedWait ends_at(TimedWait::Kind kind, clockid_t clock, Nanos end) {
  TimedWait wait;
  wait.set_kind(kind);
  wait.set_clock(clock);
  wait.set_end(end.count());
  return wait;
}

TimedWait lasts(TimedWait::Kind kind, clockid_t clock, Nanos left) {
  TimedWait wait = ends_at(kind, clock, std::max(left, Nanos()));
  wait.set_end_is_left(true);
  return wait;
}

}  // namespace

InterruptedCalls InterruptedCalls::create(const tracee::Process& process) {
  InterruptedCalls made(clock_offsets(process.path("timens_offsets")),
                        clock_offsets("/proc/self/timens_offsets"));
  auto reader = ebpf::RestartReader::create(process.pid());
  if (reader.ok()) {
    made.reader_ = std::make_unique<ebpf::RestartReader>(reader.take());
  } else {
    made.blind_ = reader.error().message();
    log_debug("interrupted calls: {}", made.blind_);
  }
  return made;
}

/// What a process outside of every time namespace reads: the kernel's own view.
Nanos InterruptedCalls::kernel_clock(clockid_t clock) const {
  const Nanos shown = read_clock(clock);
  if (clock == CLOCK_MONOTONIC) return shown - Nanos(own_.monotonic);
  if (clock == CLOCK_BOOTTIME) return shown - Nanos(own_.boottime);
  return shown;
}

Status InterruptedCalls::look(tracee::Frozen& frozen, Nanos since) {
  calls_.clear();
  std::vector<const tracee::FrozenThread*> asked;
  std::vector<pid_t> tids;
  for (const tracee::FrozenThread& thread : frozen.threads()) {
    if (!in_restart_block(thread) && !repeats_epoll(thread)) continue;
    remember(thread);
    asked.push_back(&thread);
    tids.push_back(thread.tid);
  }
  if (asked.empty()) return {};
  Result<std::vector<RestartBlock>> blocks = std::vector<RestartBlock>();
  if (reader_) blocks = reader_->read(tids);
  if (!blocks.ok()) log_debug("interrupted calls: {}", blocks.error().message());
  const bool seen = blocks.ok() && blocks->size() == asked.size();
  for (size_t i = 0; i < asked.size(); ++i) {
    const tracee::FrozenThread& thread = *asked[i];
    const RestartBlock* block = seen ? &(*blocks)[i] : nullptr;
    if (in_restart_block(thread)) {
      state::InterruptedCall& call = calls_[thread.tid];
      call.number = number_of(thread, block);
      if (block != nullptr) call.wait = wait_of(thread, *block, call.number);
    } else if (block != nullptr) {
      TRY(shorten(frozen, thread, *block, since));
    }
  }
  return {};
}

void InterruptedCalls::remember(const tracee::FrozenThread& thread) {
  const user_regs_struct& regs = thread.original;
  if (in_restart_block(thread) && regs.orig_rax != SYS_restart_syscall)
    sites_[thread.tid] = {regs.orig_rax, regs.rip, regs.rsp};
}

/// -1 if nothing tells.
long InterruptedCalls::number_of(const tracee::FrozenThread& thread, const RestartBlock* block) const {
  const user_regs_struct& regs = thread.original;
  if (regs.orig_rax != SYS_restart_syscall) return static_cast<long>(regs.orig_rax);
  if (block != nullptr && block->kind == RestartKind::kFutexWait) return SYS_futex;
  if (block != nullptr && block->kind == RestartKind::kPoll) return SYS_poll;
  const auto site = sites_.find(thread.tid);
  const bool same = site != sites_.end() && site->second.rip == regs.rip && site->second.rsp == regs.rsp;
  return same ? static_cast<long>(site->second.number) : -1;
}

/// Nothing for waits without a relative end: those are made again from their arguments.
std::optional<TimedWait> InterruptedCalls::wait_of(const tracee::FrozenThread& thread,
                                                   const RestartBlock& block, long number) const {
  const user_regs_struct& regs = thread.original;
  std::optional<TimedWait> wait;
  switch (kind_of(block, number)) {
    case RestartKind::kNanosleep: {
      const auto& sleep = block.nanosleep;
      if (sleep.clock == CLOCK_MONOTONIC)
        wait = ends_at(TimedWait::SLEEP, sleep.clock, add(sleep.expires, process_.monotonic));
      else if (sleep.clock == CLOCK_BOOTTIME)
        wait = ends_at(TimedWait::SLEEP, sleep.clock, add(sleep.expires, process_.boottime));
      else
        wait = lasts(TimedWait::SLEEP, sleep.clock, sleep.expires - kernel_clock(sleep.clock));
      break;
    }
    case RestartKind::kCpuNanosleep: {
      const clockid_t clock = cpu_clock_of(thread.tid, block.nanosleep.clock);
      wait = lasts(TimedWait::SLEEP, static_cast<clockid_t>(regs.rdi),
                   block.nanosleep.expires - read_clock(clock));
      break;
    }
    case RestartKind::kAlarmNanosleep: {
      const auto clock = static_cast<clockid_t>(regs.rdi);
      wait = lasts(TimedWait::SLEEP, clock, block.nanosleep.expires - kernel_clock(clock));
      break;
    }
    case RestartKind::kFutexWait:
      if ((static_cast<int>(regs.rsi) & FUTEX_CMD_MASK) == FUTEX_WAIT)
        wait = ends_at(TimedWait::FUTEX, CLOCK_MONOTONIC, add(block.futex.time, process_.monotonic));
      break;
    case RestartKind::kPoll:
      if (block.poll.end)
        wait = ends_at(TimedWait::POLL, CLOCK_MONOTONIC, add(*block.poll.end, process_.monotonic));
      break;
    default:
      break;
  }
  if (wait && wait->kind() == TimedWait::SLEEP && block.nanosleep.type != 0)
    wait->set_rest_at(block.nanosleep.rmtp.value());
  return wait;
}

/// When the epoll_wait() of `thread` ends, by the kernel's clock.
/// KERNEL: the timer of a repeated call ends up to a millisecond and the freeze later than the call before.
/// That its timeout is still the one that was put there tells that it is the same call; a program's own call
/// with that very timeout, begun in the same moment, ends in the same moment.
Nanos InterruptedCalls::end_of(const tracee::FrozenThread& thread, Nanos timer) const {
  constexpr Nanos kSameMoment = std::chrono::milliseconds(50);
  const auto before = shortened_.find(thread.tid);
  const bool same = before != shortened_.end() &&
                    before->second.millis == static_cast<int>(thread.original.r10) &&
                    timer >= before->second.end && timer - before->second.end < kSameMoment;
  return same ? before->second.end : timer;
}

/// SAFETY: only the timer of this very freeze counts. A thread that was caught before it slept, or without a
/// timer of its own, keeps its whole timeout.
Status InterruptedCalls::shorten(tracee::Frozen& frozen, const tracee::FrozenThread& thread,
                                 const RestartBlock& block, Nanos since) {
  if (!block.timer || block.timer->clock != CLOCK_MONOTONIC ||
      block.timer->at < since - Nanos(own_.monotonic))
    return {};
  const Nanos end = end_of(thread, block.timer->expires);
  const Nanos left = std::max(end - kernel_clock(CLOCK_MONOTONIC), Nanos());
  const auto millis = (left.count() + 999'999) / 1'000'000;
  calls_[thread.tid].wait = ends_at(TimedWait::EPOLL, CLOCK_MONOTONIC, add(end, process_.monotonic));
  user_regs_struct general = thread.original;
  if (millis >= static_cast<int>(general.r10)) return {};
  general.r10 = static_cast<unsigned long long>(millis);
  shortened_[thread.tid] = {static_cast<int>(millis), end};
  return frozen.set_original(thread.tid, general);
}

}  // namespace godwit::migration
