// Calls in flight across several freezes of a process: the end of each is found each time, epoll_wait gets
// what is left, and the process sees none of it.
#include "engine/migration/interrupted_calls.h"

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <array>
#include <thread>

#include "engine/base/files.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::migration {
namespace {

using tracee::Frozen;
using tracee::Shared;
using tracee::Target;
using wire::TimedWait;

constexpr std::chrono::seconds kLong(1000);
constexpr int kLongMillis = 1'000'000;

enum Sleeper {
  kNanosleep,
  kBootSleep,
  kAbsolute,
  kFutex,
  kPoll,
  kEpoll,
  kEpollForEver,
  kShortEpoll,
  kSleepers
};

struct Sleepers {
  std::array<std::atomic<pid_t>, kSleepers> tids{};
  std::atomic<int> returned{0}, errors{0};  ///< of kShortEpoll; of all others together
};

long sleep_in(int which) {
  timespec time{kLong.count(), 0}, end{};
  ::clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += kLong.count();
  uint32_t word = 0;
  epoll_event event{};
  const int epoll = ::epoll_create1(0);
  switch (which) {
    case kNanosleep:
      return ::syscall(SYS_nanosleep, &time, nullptr);
    case kBootSleep:
      return ::syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &time, &end);
    case kAbsolute:
      return ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &end, nullptr, FUTEX_BITSET_MATCH_ANY);
    case kFutex:
      return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, nullptr, 0);
    case kPoll:
      return ::syscall(SYS_poll, nullptr, 0, kLongMillis);
    case kEpoll:
      return ::syscall(SYS_epoll_wait, epoll, &event, 1, kLongMillis);
    case kEpollForEver:
      return ::syscall(SYS_epoll_wait, epoll, &event, 1, -1);
    default:
      return ::syscall(SYS_epoll_wait, epoll, &event, 1, 100);
  }
}

void run_sleepers(Sleepers& shared, const std::function<void()>& ready) {
  for (int i = 0; i < kSleepers; ++i) {
    std::thread([&shared, i] {
      shared.tids[static_cast<size_t>(i)] = static_cast<pid_t>(::syscall(SYS_gettid));
      do {
        const long result = sleep_in(i);
        if (result != 0 || i != kShortEpoll) ++shared.errors;
        if (i == kShortEpoll) ++shared.returned;
      } while (i == kShortEpoll);
    }).detach();
  }
  for (const auto& tid : shared.tids) {
    while (tid == 0) ::sched_yield();
  }
  ready();
  for (;;) ::pause();
}

void await_sleep(const tracee::Process& process, pid_t tid) {
  for (;;) {
    const auto status = process.status(tid);
    ASSERT_OK(status);
    if (field(status.value(), "State:").value_or("?").starts_with('S')) return;
    ::sched_yield();
  }
}

void expect_wait(const InterruptedCalls& calls, pid_t tid, TimedWait::Kind kind, clockid_t clock,
                 Nanos first_seen) {
  const auto found = calls.calls().find(tid);
  ASSERT_NE(found, calls.calls().end()) << kind;
  ASSERT_TRUE(found->second.wait) << kind;
  EXPECT_EQ(found->second.wait->kind(), kind);
  EXPECT_EQ(found->second.wait->clock(), clock);
  EXPECT_FALSE(found->second.wait->end_is_left());
  // The end is that of the call's own beginning, before the first freeze, in each of them.
  const Nanos end(found->second.wait->end());
  EXPECT_LE(end, first_seen + kLong) << kind;
  EXPECT_GT(end, first_seen) << kind;
}

void expect_all(const InterruptedCalls& calls, const Sleepers& shared, Nanos monotonic, Nanos boottime) {
  expect_wait(calls, shared.tids[kNanosleep], TimedWait::SLEEP, CLOCK_MONOTONIC, monotonic);
  expect_wait(calls, shared.tids[kBootSleep], TimedWait::SLEEP, CLOCK_BOOTTIME, boottime);
  expect_wait(calls, shared.tids[kFutex], TimedWait::FUTEX, CLOCK_MONOTONIC, monotonic);
  expect_wait(calls, shared.tids[kPoll], TimedWait::POLL, CLOCK_MONOTONIC, monotonic);
  expect_wait(calls, shared.tids[kEpoll], TimedWait::EPOLL, CLOCK_MONOTONIC, monotonic);
  // Made again from its arguments, its number known even when it hides.
  const auto& absolute = calls.calls().at(shared.tids[kAbsolute]);
  EXPECT_EQ(absolute.number, SYS_futex);
  EXPECT_FALSE(absolute.wait);
  EXPECT_EQ(calls.calls().count(shared.tids[kEpollForEver]), 0U);
}

TEST(InterruptedCalls, KnowTheEndOfEachWaitInEveryFreeze) {
  Shared<Sleepers> shared;
  Target target([&](const auto& ready) { run_sleepers(*shared, ready); });
  const auto process = tracee::Process::open(target.pid());
  ASSERT_OK(process);
  auto calls = InterruptedCalls::create(process.value());
  if (!calls.blind().empty()) GTEST_SKIP() << calls.blind();
  for (const auto& tid : shared->tids) await_sleep(process.value(), tid);
  const Nanos monotonic = monotonic_now(), boottime = read_clock(CLOCK_BOOTTIME);
  int left = kLongMillis;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < kShortEpoll; ++i) await_sleep(process.value(), shared->tids[static_cast<size_t>(i)]);
    const Nanos since = monotonic_now();
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    const Nanos begin = monotonic_now();
    ASSERT_OK(calls.look(frozen.value(), since));
    fmt::print("look {}: {} us\n", round, to_micros(monotonic_now() - begin));
    expect_all(calls, *shared, monotonic, boottime);
    const auto timeout = static_cast<int>(frozen->find(shared->tids[kEpoll])->original.r10);
    EXPECT_LE(timeout, left);
    EXPECT_GT(timeout, 0);
    left = timeout;
    EXPECT_EQ(static_cast<int>(frozen->find(shared->tids[kEpollForEver])->original.r10), -1);
    ASSERT_OK(frozen->finish());
  }
  EXPECT_EQ(shared->errors, 0);
}

/// A thread that is frozen again before it is back in its call: the kernel has put it before the instruction
/// that will restart it. Those microseconds are made here by hand.
TEST(InterruptedCalls, AreKnownOnTheWayBackToSleep) {
  Shared<Sleepers> shared;
  Target target([&](const auto& ready) { run_sleepers(*shared, ready); });
  const auto process = tracee::Process::open(target.pid());
  ASSERT_OK(process);
  auto calls = InterruptedCalls::create(process.value());
  if (!calls.blind().empty()) GTEST_SKIP() << calls.blind();
  const Nanos monotonic = monotonic_now(), boottime = read_clock(CLOCK_BOOTTIME);
  constexpr std::array kRestarted{kNanosleep, kBootSleep, kAbsolute, kFutex, kPoll};
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < kShortEpoll; ++i) await_sleep(process.value(), shared->tids[static_cast<size_t>(i)]);
    const Nanos since = monotonic_now();
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    for (const int sleeper : kRestarted) {
      const pid_t tid = shared->tids[static_cast<size_t>(sleeper)];
      user_regs_struct general = frozen->find(tid)->original;
      general.rip -= 2;
      general.rax = SYS_restart_syscall;
      if (round == 2) general.orig_rax = ~0ULL;  // was in user mode already
      ASSERT_OK(tracee::write_general(tid, general));
      ASSERT_OK(frozen->settle(tid));
    }
    ASSERT_OK(calls.look(frozen.value(), since));
    expect_all(calls, *shared, monotonic, boottime);
    ASSERT_OK(frozen->finish());
  }
  for (const int sleeper : kRestarted)
    await_sleep(process.value(), shared->tids[static_cast<size_t>(sleeper)]);
  EXPECT_EQ(shared->errors, 0);
}

/// Frozen without pause, a wait of 100 ms still ends: what has passed is not given back.
TEST(InterruptedCalls, AreNotStretchedByFreezes) {
  Shared<Sleepers> shared;
  Target target([&](const auto& ready) { run_sleepers(*shared, ready); });
  const auto process = tracee::Process::open(target.pid());
  ASSERT_OK(process);
  auto calls = InterruptedCalls::create(process.value());
  if (!calls.blind().empty()) GTEST_SKIP() << calls.blind();
  const int returned = shared->returned;
  size_t shortened = 0;
  while (shared->returned < returned + 3) {
    await_sleep(process.value(), shared->tids[kShortEpoll]);
    const Nanos since = monotonic_now();
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ASSERT_OK(calls.look(frozen.value(), since));
    shortened += calls.calls().count(shared->tids[kShortEpoll]);
    ASSERT_OK(frozen->finish());
  }
  EXPECT_GT(shortened, 0U);
  EXPECT_EQ(shared->errors, 0);
}

}  // namespace
}  // namespace godwit::migration
