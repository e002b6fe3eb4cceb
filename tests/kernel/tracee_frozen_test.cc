#include "engine/tracee/frozen.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/realtime.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::tracee {
namespace {

// ---------------------------------------------------------------- waits that a freeze must not show in

struct Waits {
  std::atomic<int> stop{0};
  std::atomic<int> rounds[16]{};
  std::atomic<int> wrong{0};
  char what[256] = {};

  void report(const char* name, long result, int err, Nanos lasted) {
    if (wrong.fetch_add(1) == 0)
      snprintf(what, sizeof what, "%s: result %ld errno %d after %lld us", name, result, err,
               static_cast<long long>(to_micros(lasted)));
  }
};

constexpr long kSleepMillis = 20;

/// Repeats `wait`, which must end by itself, with `expected` (result, errno), and not before its time.
void check_waits(Waits& shared, size_t index, const char* name, long expected, int expected_errno,
                 const std::function<long()>& wait) {
  while (shared.stop.load() == 0) {
    const Nanos start = monotonic_now();
    errno = 0;
    const long result = wait();
    const int err = result < 0 ? errno : 0;
    const Nanos lasted = monotonic_now() - start;
    if (result != expected || err != expected_errno || lasted < std::chrono::milliseconds(kSleepMillis))
      shared.report(name, result, err, lasted);
    shared.rounds[index].fetch_add(1);
  }
}

void run_waiting_threads(Waits& shared, const std::function<void()>& ready) {
  const timespec short_time{0, kSleepMillis * 1'000'000};
  const int epoll = ::epoll_create1(0);
  const int semaphore = ::semget(IPC_PRIVATE, 1, 0600);
  int never[2], later[2];
  if (::pipe(never) != 0 || ::pipe(later) != 0) ::_exit(2);
  ::semctl(semaphore, 0, SETVAL, 0);
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &usr1, nullptr);
  int word = 0;
  std::vector<std::thread> threads;
  size_t next = 0;
  const auto check = [&](const char* name, long result, int err, std::function<long()> wait) {
    threads.emplace_back([&shared, index = next++, name, result, err, wait = std::move(wait)] {
      check_waits(shared, index, name, result, err, wait);
    });
  };
  epoll_event event{};
  check("epoll_wait", 0, 0, [=]() mutable { return ::epoll_wait(epoll, &event, 1, kSleepMillis); });
  sigset_t none;
  sigemptyset(&none);
  check("epoll_pwait", 0, 0, [=]() mutable { return ::epoll_pwait(epoll, &event, 1, kSleepMillis, &none); });
  check("nanosleep", 0, 0, [=] { return ::nanosleep(&short_time, nullptr); });
  check("clock_nanosleep", 0, 0, [=] { return ::clock_nanosleep(CLOCK_REALTIME, 0, &short_time, nullptr); });
  check("futex", -1, ETIMEDOUT, [&word, short_time] {
    return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &short_time, nullptr, 0);
  });
  pollfd polled{never[0], POLLIN, 0};
  check("poll", 0, 0, [=]() mutable { return ::poll(&polled, 1, kSleepMillis); });
  check("ppoll", 0, 0, [=]() mutable { return ::ppoll(&polled, 1, &short_time, &none); });
  check("select", 0, 0, [=] {
    timeval time{0, kSleepMillis * 1000};
    return ::select(0, nullptr, nullptr, nullptr, &time);
  });
  check("sigtimedwait", -1, EAGAIN, [=] { return ::sigtimedwait(&usr1, nullptr, &short_time); });
  sembuf take{0, -1, 0};
  check("semtimedop", -1, EAGAIN, [=]() mutable { return ::semtimedop(semaphore, &take, 1, &short_time); });
  std::thread reader([&] {
    char byte = 0;
    const ssize_t got = ::read(later[0], &byte, 1);
    if (got != 1) shared.report("read", got, errno, Nanos{});
  });
  std::thread taker([&] {
    if (const int got = ::semop(semaphore, &take, 1); got != 0) shared.report("semop", got, errno, Nanos{});
  });
  ready();
  while (shared.stop.load() == 0) ::usleep(1000);
  sembuf give{0, 1, 0};
  (void)::semop(semaphore, &give, 1);
  (void)!::write(later[1], "x", 1);
  for (std::thread& thread : threads) thread.join();
  reader.join();
  taker.join();
  ::semctl(semaphore, 0, IPC_RMID);
  ::_exit(shared.wrong.load() == 0 ? 0 : 1);
}

TEST(Frozen, AThousandFreezesAreNeverSeenByThreadsThatWait) {
  Shared<Waits> shared;
  Target target([&](const auto& ready) { run_waiting_threads(*shared, ready); });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  size_t made_again = 0;
  for (int i = 0; i < 1000; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    EXPECT_EQ(frozen->threads().size(), 13U);
    for (const FrozenThread& thread : frozen->threads()) made_again += thread.made_again ? 1 : 0;
    ASSERT_OK(frozen->finish());
  }
  for (size_t i = 0; i < 10; ++i) await_change(shared->rounds[i], shared->rounds[i].load());
  shared->stop = 1;
  EXPECT_EQ(target.wait(), 0) << shared->what;
  EXPECT_GT(made_again, 1000U) << "epoll_wait, semop and sigtimedwait never restart by themselves";
}

// ---------------------------------------------------------------- all threads, all signals

struct Counters {
  std::atomic<int> ticks[8]{};
  std::atomic<int> signals{0};
  std::atomic<int> continued{0};
  std::atomic<int> interrupted{0};
  std::atomic<int> aborts{0};
  std::atomic<uint64_t> section_start{0}, section_size{0}, abort_ip{0};
};

int sum_of(const Counters& counters) {
  int sum = 0;
  for (const auto& tick : counters.ticks) sum += tick.load();
  return sum;
}

TEST(Frozen, StandsStillWhileThreadsAreBornAndEnd) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    ready();
    std::vector<std::thread> breeders;
    for (size_t i = 0; i < 3; ++i) {
      breeders.emplace_back([&, i] {
        for (;;) std::thread([&] { shared->ticks[i].fetch_add(1); }).join();
      });
    }
    breeders[0].join();
  });
  await_change(shared->ticks[2], 0);
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  for (int i = 0; i < 300; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    const int before = sum_of(*shared);
    const auto tids = process.value().threads();
    ASSERT_OK(tids);
    for (const pid_t tid : tids.value()) {
      if (frozen->find(tid) != nullptr) continue;
      const std::string status = process.value().status(tid).ok() ? process.value().status(tid).value() : "";
      EXPECT_TRUE(status.empty() || status.find("State:\tZ") != std::string::npos ||
                  status.find("State:\tX") != std::string::npos)
          << status;
    }
    EXPECT_EQ(sum_of(*shared), before);
    ASSERT_OK(frozen->finish());
    await_change(shared->ticks[0], shared->ticks[0].load());
  }
}

Shared<Counters>* in_handler = nullptr;

TEST(Frozen, LosesNoSignalThatArrivesInTheMiddle) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) {
    struct sigaction action {};
    action.sa_handler = [](int) { (*in_handler)->signals.fetch_add(1); };
    ::sigaction(SIGRTMIN, &action, nullptr);
    ready();
    for (;;) (*in_handler)->ticks[0].fetch_add(1);
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  constexpr int kSent = 2000;
  std::thread sender([&] {
    for (int i = 0; i < kSent; ++i) {
      while (::sigqueue(target.pid(), SIGRTMIN, sigval{}) != 0) ::usleep(100);
      if (i % 8 == 0) ::usleep(50);
    }
  });
  for (int i = 0; i < 3000; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ASSERT_OK(frozen->finish());
  }
  sender.join();
  while (shared->signals.load() < kSent && state_letter(target.pid()) != 'X') ::usleep(500);
  EXPECT_EQ(shared->signals.load(), kSent);
}

/// A POSIX timer's signal can take the pending interrupt away: asked for only once, the freeze would wait on
/// and on.
TEST(Frozen, AFloodOfSignalsDoesNotHoldItUp) {
  Shared<std::atomic<int>> handled;
  Target target([&](const auto& ready) {
    static std::atomic<int>* counter = &*handled;
    struct sigaction action {};
    action.sa_handler = [](int) { counter->fetch_add(1); };
    action.sa_flags = SA_RESTART;
    ::sigaction(SIGALRM, &action, nullptr);
    for (const long nanos : {31'000, 47'000}) {
      timer_t timer{};  // without an event: SIGALRM
      const itimerspec every{{0, nanos}, {0, nanos}};
      if (::timer_create(CLOCK_MONOTONIC, nullptr, &timer) != 0) ::_exit(1);
      if (::timer_settime(timer, 0, &every, nullptr) != 0) ::_exit(1);
    }
    ready();
    for (;;) asm volatile("pause");
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  for (int i = 0; i < 3000; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ASSERT_OK(frozen->finish());
  }
  await_change(*handled, handled->load());
}

TEST(Frozen, ASignalDuringTheFreezeStillInterruptsAWait) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) {
    struct sigaction action {};
    action.sa_handler = [](int) { (*in_handler)->signals.fetch_add(1); };
    ::sigaction(SIGUSR1, &action, nullptr);
    const int epoll = ::epoll_create1(0);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    ready();
    epoll_event event{};
    for (int i = 0;; ++i) {
      // Once as a plain wait, once with the signal let in for the wait alone.
      ::sigprocmask(i % 2 == 0 ? SIG_UNBLOCK : SIG_BLOCK, &block, nullptr);
      shared->ticks[0].fetch_add(1);
      const int got =
          i % 2 == 0 ? ::epoll_wait(epoll, &event, 1, -1) : ::epoll_pwait(epoll, &event, 1, -1, &none);
      if (got == -1 && errno == EINTR) shared->interrupted.fetch_add(1);
    }
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  for (int i = 0; i < 100; ++i) {
    while (state_letter(target.pid()) != 'S') ::usleep(50);
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ::kill(target.pid(), SIGUSR1);
    ASSERT_OK(frozen->finish());
    while (shared->interrupted.load() < i + 1) ::usleep(50);
    EXPECT_EQ(shared->signals.load(), i + 1);
  }
}

// ---------------------------------------------------------------- states that need care

TEST(Frozen, AStoppedProcessStaysStopped) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    std::thread other([&] {
      for (;;) shared->ticks[1].fetch_add(1);
    });
    ready();
    for (;;) shared->ticks[0].fetch_add(1);
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  ::kill(target.pid(), SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(target.pid(), &status, WUNTRACED), target.pid());
  for (int i = 0; i < 50; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    for (const FrozenThread& thread : frozen->threads()) EXPECT_TRUE(thread.group_stopped);
    ASSERT_OK(frozen->finish());
  }
  const int before = sum_of(*shared);
  while (state_letter(target.pid()) != 'T') ::usleep(100);
  EXPECT_EQ(sum_of(*shared), before);
  ::kill(target.pid(), SIGCONT);
  await_change(shared->ticks[0], shared->ticks[0].load());
  await_change(shared->ticks[1], shared->ticks[1].load());
}

TEST(Frozen, NamesWhoTracesTheTarget) {
  Target target([](const auto& ready) {
    ready();
    for (;;) ::pause();
  });
  Target tracer([&](const auto& ready) {
    if (::ptrace(PTRACE_SEIZE, target.pid(), nullptr, nullptr) != 0) ::_exit(1);
    ready();
    for (;;) ::pause();
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  const auto frozen = Frozen::freeze(process.value());
  ASSERT_FALSE(frozen.ok());
  EXPECT_EQ(frozen.error().kind, ErrorKind::kDenied);
  EXPECT_NE(frozen.error().remedy.find(fmt::format("pid {} (", tracer.pid())), std::string::npos)
      << frozen.error().message();
}

TEST(Frozen, AZombieIsGoneAndAThreadIsNotAProcess) {
  Target target([](const auto& ready) {
    std::thread other([] { ::pause(); });
    ready();
    ::pause();
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  const auto tids = process.value().threads();
  ASSERT_OK(tids);
  ASSERT_EQ(tids.value().size(), 2U);
  const auto thread = Process::open(tids.value()[1]);
  ASSERT_FALSE(thread.ok());
  EXPECT_EQ(thread.error().kind, ErrorKind::kRefused) << thread.error().message();
  ::kill(target.pid(), SIGKILL);
  while (!process.value().pidfd().exited()) ::usleep(100);
  const auto frozen = Frozen::freeze(process.value());
  ASSERT_FALSE(frozen.ok());
  EXPECT_EQ(frozen.error().kind, ErrorKind::kTargetGone) << frozen.error().message();
}

TEST(Frozen, AParentInVforkIsToldToRetryAndGoesOn) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    ready();
    std::thread other([&] {
      for (;;) shared->ticks[1].fetch_add(1);
    });
    const pid_t child = ::vfork();
    if (child == 0) {
      while (shared->signals.load() == 0) ::usleep(1000);
      ::_exit(0);
    }
    for (;;) shared->ticks[0].fetch_add(1);
  });
  await_change(shared->ticks[1], 0);
  while (state_letter(target.pid()) != 'D') ::usleep(100);
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  // The freeze gives up, lets the other thread run, and waits for the vfork to end.
  std::thread ender([&] {
    const int seen = shared->ticks[1].load();
    ::usleep(60'000);
    await_change(shared->ticks[1], seen);
    shared->signals = 1;
  });
  const auto frozen = Frozen::freeze(process.value());
  ender.join();
  ASSERT_FALSE(frozen.ok());
  EXPECT_EQ(frozen.error().kind, ErrorKind::kRetry) << frozen.error().message();
  await_change(shared->ticks[0], shared->ticks[0].load());
  await_change(shared->ticks[1], shared->ticks[1].load());
  EXPECT_OK(Frozen::freeze(process.value()));
}

/// Spins inside a restartable section; its abort handler counts and enters it again.
void spin_in_rseq_section(Counters& shared) {
  struct alignas(32) Section {
    uint32_t version = 0, flags = 0;
    uint64_t start = 0, size = 0, abort = 0;
  };
  static Section section;
  auto* area = reinterpret_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  uint64_t start = 0, end = 0, abort_ip = 0;
  asm volatile("lea 1f(%%rip), %0\n lea 2f(%%rip), %1\n lea 4f(%%rip), %2\n"
               : "=r"(start), "=r"(end), "=r"(abort_ip));
  section.start = start;
  section.size = end - start;
  section.abort = abort_ip;
  shared.section_start = start;
  shared.section_size = end - start;
  shared.abort_ip = abort_ip;
  asm volatile(
      "3: mov %[section], 8(%[area])\n"
      "1: jmp 1b\n"
      "2: ud2\n"
      ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"  // the signature glibc registered
      "4: lock incl (%[aborts])\n"
      "jmp 3b\n" ::[section] "r"(&section),
      [area] "r"(area), [aborts] "r"(&shared.aborts)
      : "memory");
}

TEST(Frozen, AThreadInARestartableSectionIsMovedToItsAbortHandler) {
  if (__rseq_size == 0) GTEST_SKIP() << "glibc registered no rseq area";
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    ready();
    spin_in_rseq_section(*shared);
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  while (shared->abort_ip.load() == 0) ::usleep(100);
  int moved = 0;
  for (int i = 0; i < 100; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    const uint64_t ip = frozen->leader().original.rip;
    EXPECT_GE(ip - shared->section_start.load(), shared->section_size.load());
    if (ip == shared->abort_ip.load()) ++moved;
    ASSERT_OK(frozen->finish());
    await_change(shared->aborts, i);
  }
  EXPECT_GT(moved, 50);
}

// ---------------------------------------------------------------- the stop that outlives the engine

void run_with_continue_handler(Counters& shared, const std::function<void()>& ready) {
  struct sigaction action {};
  action.sa_handler = [](int) { (*in_handler)->continued.fetch_add(1); };
  ::sigaction(SIGCONT, &action, nullptr);
  std::thread other([&] {
    for (;;) shared.ticks[1].fetch_add(1);
  });
  ready();
  for (;;) shared.ticks[0].fetch_add(1);
}

TEST(Frozen, APermanentStopIsTakenBackUnseen) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) { run_with_continue_handler(*shared, ready); });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  for (int i = 0; i < 100; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ASSERT_OK(frozen->make_stop_permanent());
    const int before = sum_of(*shared);
    ASSERT_OK(frozen->undo_stop());
    EXPECT_EQ(sum_of(*shared), before);
    ASSERT_OK(frozen->finish());
    await_change(shared->ticks[0], shared->ticks[0].load());
    await_change(shared->ticks[1], shared->ticks[1].load());
  }
  EXPECT_EQ(shared->continued.load(), 0);
}

TEST(Frozen, APermanentStopOutlivesTheEngineAndTheNextOneTakesItBackUnseen) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) { run_with_continue_handler(*shared, ready); });
  for (int i = 0; i < 20; ++i) {
    int before = 0;
    Shared<std::atomic<int>> frozen_at;
    {
      Target engine([&](const auto& ready) {
        const auto process = Process::open(target.pid());
        auto frozen = Frozen::freeze(process.value());
        if (!frozen.ok() || !frozen->make_stop_permanent().ok()) ::_exit(1);
        *frozen_at = sum_of(*shared);
        ready();
        ::pause();
      });
      before = frozen_at->load();
    }  // kill -9
    while (state_letter(target.pid()) != 'T') ::usleep(100);
    EXPECT_EQ(sum_of(*shared), before) << "a thread ran between the engine's death and the stop";
    const auto process = Process::open(target.pid());
    ASSERT_OK(process);
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    EXPECT_TRUE(frozen->leader().group_stopped);
    ASSERT_OK(frozen->undo_stop());
    EXPECT_EQ(sum_of(*shared), before);
    ASSERT_OK(frozen->finish());
    await_change(shared->ticks[0], shared->ticks[0].load());
    await_change(shared->ticks[1], shared->ticks[1].load());
  }
  EXPECT_EQ(shared->continued.load(), 0);
}

TEST(Frozen, KillReapsEveryThread) {
  Target target([](const auto& ready) {
    std::thread a([] { ::pause(); });
    std::thread b([] {
      for (;;) {
      }
    });
    ready();
    ::pause();
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  auto frozen = Frozen::freeze(process.value());
  ASSERT_OK(frozen);
  ASSERT_OK(frozen->kill());
  EXPECT_TRUE(process.value().pidfd().exited());
  EXPECT_TRUE(frozen->threads().empty());
}

/// With two threads, so that the leader's end waits for the other's to be seen.
TEST(Frozen, AChildThatIsKilledUnderItsTracerIsLeftToItsParent) {
  for (int round = 0; round < 50; ++round) {
    Target target([](const auto& ready) {
      std::thread([] { ::pause(); }).detach();
      ready();
      ::pause();
    });
    const auto process = Process::open(target.pid());
    ASSERT_OK(process);
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    ASSERT_EQ(::kill(target.pid(), SIGKILL), 0);
    (void)frozen->finish();  // it may have let go of the one thread before the kill met it
    const int status = target.wait();
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
}

// ---------------------------------------------------------------- what it costs (printed, never judged)

void print_cost(int threads, bool boosted) {
  Target target([&](const auto& ready) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([] { ::pause(); });
    ready();
    ::pause();
  });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  std::vector<Nanos> freezes, thaws;
  for (int i = 0; i < 200; ++i) {
    std::unique_ptr<RealtimeBoost> boost;
    if (boosted) boost = std::make_unique<RealtimeBoost>();
    const Nanos start = monotonic_now();
    auto frozen = Frozen::freeze(process.value());
    const Nanos stopped = monotonic_now();
    ASSERT_OK(frozen);
    ASSERT_OK(frozen->finish());
    freezes.push_back(stopped - start);
    thaws.push_back(monotonic_now() - stopped);
    ::usleep(500);  // for the threads to fall asleep again
  }
  std::sort(freezes.begin(), freezes.end());
  std::sort(thaws.begin(), thaws.end());
  fmt::print("{:3} threads{}: freeze median {} us, p95 {} us, max {} us; thaw median {} us\n", threads,
             boosted ? " FIFO" : "     ", to_micros(freezes[100]), to_micros(freezes[190]),
             to_micros(freezes[199]), to_micros(thaws[100]));
}

TEST(Frozen, PrintsItsCost) {
  for (const int threads : {1, 10, 100}) {
    print_cost(threads, false);
    print_cost(threads, true);
  }
}

}  // namespace
}  // namespace godwit::tracee
