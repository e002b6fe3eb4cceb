#include "engine/tracee/injector.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "engine/base/clock.h"
#include "engine/base/files.h"
#include "engine/tracee/memory.h"
#include "tests/kernel/injector_checker.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::tracee {
namespace {

struct Counters {
  std::atomic<int> ticks{0};
  std::atomic<int> handled{0};
  std::atomic<int> wrong{0};
  std::atomic<int> tid{0};
  std::atomic<int> stop{0};
};
Shared<Counters>* in_handler = nullptr;

std::string maps_of(pid_t pid) {
  const auto text = read_file(fmt::format("/proc/{}/maps", pid));
  return text.ok() ? text.value() : "";
}

/// Freezes, creates an injector, hands it to `work`, and takes everything away again; the maps must be as
/// before.
void with_injector(pid_t pid, const std::function<void(Frozen&, Injector&)>& work) {
  const auto process = Process::open(pid);
  ASSERT_OK(process);
  const std::string before = maps_of(pid);
  auto frozen = Frozen::freeze(process.value());
  ASSERT_OK(frozen);
  {
    auto injector = Injector::create(frozen.value());
    ASSERT_OK(injector);
    EXPECT_FALSE(injector.value()->scratch().empty());
    work(frozen.value(), *injector.value());
    ASSERT_OK(injector.value()->finish());
  }
  ASSERT_OK(frozen->finish());
  EXPECT_EQ(maps_of(pid), before);
}

/// Runs getpid, gettid and uname on `tid` and checks what they say.
void expect_calls_work(Injector& injector, pid_t pid, pid_t tid) {
  Batch batch;
  const size_t pid_call = batch.call(SYS_getpid, {}, "getpid");
  const DataRef name = batch.reserve(sizeof(utsname));
  batch.call(SYS_uname, {name}, "uname");
  const size_t tid_call = batch.call(SYS_gettid, {}, "gettid");
  ASSERT_OK(injector.run(tid, batch));
  EXPECT_EQ(batch.result(pid_call), pid);
  EXPECT_EQ(batch.result(tid_call), tid);
  EXPECT_STREQ(batch.value<utsname>(name).sysname, "Linux");
}

/// The usual round: some injections into one thread of a target, while something of its own goes on.
void inject_often(pid_t pid, pid_t tid, int times) {
  for (int i = 0; i < times; ++i) {
    with_injector(pid, [&](Frozen&, Injector& injector) {
      for (int run = 0; run < 3; ++run) expect_calls_work(injector, pid, tid);
    });
  }
}

void spin(Counters& counters, const std::function<void()>& ready) {
  ready();
  for (;;) counters.ticks.fetch_add(1);
}

// ---------------------------------------------------------------- batches

TEST(Injector, DataGoInAndComeBack) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
    Batch batch;
    const DataRef ends = batch.reserve(2 * sizeof(int));
    batch.call(SYS_pipe2, {ends, O_CLOEXEC}, "pipe2");
    ASSERT_OK(injector.run(frozen.leader().tid, batch));
    const auto fds = batch.value<std::array<int, 2>>(ends);
    Batch second;
    const DataRef text = second.put_string("through the pipe");
    const DataRef back = second.reserve(text.size);
    second.call(SYS_write, {fds[1], text, text.size}, "write");
    second.call(SYS_read, {fds[0], back, back.size}, "read");
    second.call(SYS_close, {fds[0]}, "close");
    second.call(SYS_close, {fds[1]}, "close");
    ASSERT_OK(injector.run(frozen.leader().tid, second));
    EXPECT_STREQ(reinterpret_cast<const char*>(second.bytes(back).data()), "through the pipe");
  });
}

TEST(Injector, AFailedCallIsNamedAndTheOthersRun) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
    Batch batch;
    const size_t allowed = batch.call_may_fail(SYS_close, {12345}, "close a descriptor that is not open");
    batch.call(SYS_dup, {12346}, "duplicate fd 12346");
    const size_t last = batch.call(SYS_getppid, {}, "getppid");
    const Status status = injector.run(frozen.leader().tid, batch);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().operation, "duplicate fd 12346");
    EXPECT_EQ(status.error().err, EBADF);
    EXPECT_EQ(batch.result(allowed), -EBADF);
    EXPECT_EQ(batch.result(last), ::getpid());
  });
}

TEST(Injector, ABatchLargerThanTheScratchRunsInRounds) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
    Batch batch;
    for (int i = 0; i < 20'000; ++i) batch.call(SYS_getpid, {}, "getpid");
    const DataRef ends = batch.reserve(2 * sizeof(int));
    batch.call(SYS_pipe2, {ends, 0}, "pipe2");
    std::vector<DataRef> blocks;
    for (int i = 0; i < 40; ++i) {  // 2.5 MiB
      blocks.push_back(batch.put(std::vector<std::byte>(65536, std::byte(i))));
      batch.call(SYS_getrandom, {blocks.back(), 16, 0}, "getrandom");
    }
    ASSERT_OK(injector.run(frozen.leader().tid, batch));
    for (size_t i = 0; i < 20'000; ++i) ASSERT_EQ(batch.result(i), target.pid());
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto bytes = batch.bytes(blocks[i]);
      EXPECT_TRUE(std::any_of(bytes.begin(), bytes.begin() + 16, [=](auto b) { return b != std::byte(i); }));
      EXPECT_TRUE(std::all_of(bytes.begin() + 16, bytes.end(), [=](auto b) { return b == std::byte(i); }));
    }
    const auto fds = batch.value<std::array<int, 2>>(ends);
    Batch closing;
    for (const int fd : fds) closing.call(SYS_close, {fd}, "close");
    ASSERT_OK(injector.run(frozen.leader().tid, closing));
    Batch too_large;
    too_large.call(SYS_getrandom, {too_large.reserve(500'000), 16, 0}, "a call with too much data");
    EXPECT_EQ(injector.run(frozen.leader().tid, too_large).error().kind, ErrorKind::kBug);
  });
}

// ---------------------------------------------------------------- threads in every state

TEST(Injector, NoRegisterMaskOrWaitOfTheTargetChanges) {
  Shared<CheckReport> report;
  Target target([&](const auto& ready) { run_checker(*report, true, ready); });
  for (int i = 0; i < 60; ++i) {
    with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
      for (const FrozenThread& thread : frozen.threads())
        expect_calls_work(injector, target.pid(), thread.tid);
    });
    await_change(report->rounds, report->rounds.load());
  }
  await_change(report->sleeps, report->sleeps.load());
  EXPECT_EQ(report->wrong.load(), 0) << report->what;
  EXPECT_EQ(report->interrupted.load(), 0);
  EXPECT_GT(report->handled.load(), 0);
}

/// A sleep that is interrupted again and again goes on from where it was, and ends on time.
TEST(Injector, ASleepIsNeitherShortenedNorBegunAnew) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    ready();
    const timespec time{0, 300'000'000};
    const Nanos start = monotonic_now();
    if (::nanosleep(&time, nullptr) != 0) ::_exit(1);
    const Nanos lasted = monotonic_now() - start;
    shared->ticks = static_cast<int>(to_micros(lasted));
    ::_exit(lasted >= std::chrono::milliseconds(300) ? 0 : 2);
  });
  int injections = 0;
  while (shared->ticks.load() == 0 && injections < 200) {
    if (state_letter(target.pid()) != 'S') continue;
    const auto process = Process::open(target.pid());
    auto frozen = Frozen::freeze(process.value());
    if (!frozen.ok()) break;  // it woke up and ended
    auto injector = Injector::create(frozen.value());
    ASSERT_OK(injector);
    expect_calls_work(*injector.value(), target.pid(), target.pid());
    ASSERT_OK(injector.value()->finish());
    ASSERT_OK(frozen->finish());
    ++injections;
    ::usleep(1000);
  }
  EXPECT_EQ(target.wait(), 0);
  EXPECT_GT(injections, 10);
  EXPECT_LT(shared->ticks.load(), 10'000'000) << "200 injections that each begin it anew would take a minute";
}

TEST(Injector, APendingSignalIsDeliveredOnceAndAfterwards) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) {
    struct sigaction action {};
    action.sa_handler = [](int) { (*in_handler)->handled.fetch_add(1); };
    ::sigaction(SIGRTMIN, &action, nullptr);
    ::sigaction(SIGURG, &action, nullptr);
    spin(*shared, ready);
  });
  for (int i = 0; i < 50; ++i) {
    with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
      ASSERT_EQ(::sigqueue(target.pid(), SIGRTMIN, sigval{}), 0);
      ASSERT_EQ(::syscall(SYS_tgkill, target.pid(), target.pid(), SIGURG), 0);
      expect_calls_work(injector, target.pid(), frozen.leader().tid);
      EXPECT_EQ(shared->handled.load(), 2 * i);
    });
    while (shared->handled.load() < 2 * i + 2) ::usleep(50);
  }
  EXPECT_EQ(shared->handled.load(), 100);
}

TEST(Injector, AWaitWithAMaskOfItsOwnIsStillInterruptedByItsSignal) {
  Shared<Counters> shared;
  in_handler = &shared;
  Target target([&](const auto& ready) {
    struct sigaction action {};
    action.sa_handler = [](int) { (*in_handler)->handled.fetch_add(1); };
    ::sigaction(SIGUSR1, &action, nullptr);
    sigset_t usr1, none;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &usr1, nullptr);
    const int epoll = ::epoll_create1(0);
    ready();
    for (int i = 0;; ++i) {
      epoll_event event{};
      const int got = i % 3 == 0   ? ::ppoll(nullptr, 0, nullptr, &none)
                      : i % 3 == 1 ? ::epoll_pwait(epoll, &event, 1, -1, &none)
                                   : ::sigsuspend(&none);
      if (got != -1 || errno != EINTR || (*in_handler)->handled.load() != i + 1) shared->wrong.fetch_add(1);
      shared->ticks.fetch_add(1);
    }
  });
  for (int i = 0; i < 60; ++i) {
    while (state_letter(target.pid()) != 'S') ::usleep(50);
    with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
      if (i % 2 == 0) ::kill(target.pid(), SIGUSR1);
      expect_calls_work(injector, target.pid(), frozen.leader().tid);
      if (i % 2 == 1) ::kill(target.pid(), SIGUSR1);
    });
    while (shared->ticks.load() < i + 1) ::usleep(50);
    EXPECT_EQ(shared->handled.load(), i + 1);
  }
  EXPECT_EQ(shared->wrong.load(), 0);
}

TEST(Injector, AStoppedProcessTakesInjectionsAndStaysStopped) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  ::kill(target.pid(), SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(target.pid(), &status, WUNTRACED), target.pid());
  const int before = shared->ticks.load();
  inject_often(target.pid(), target.pid(), 20);
  while (state_letter(target.pid()) != 'T') ::usleep(100);
  EXPECT_EQ(shared->ticks.load(), before);
  ::kill(target.pid(), SIGCONT);
  await_change(shared->ticks, before);
}

TEST(Injector, AStopThatArrivesDuringAnInjectionIsNotLost) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  for (int i = 0; i < 20; ++i) {
    with_injector(target.pid(), [&](Frozen& frozen, Injector& injector) {
      ::kill(target.pid(), SIGSTOP);
      expect_calls_work(injector, target.pid(), frozen.leader().tid);
    });
    int status = 0;
    ASSERT_EQ(::waitpid(target.pid(), &status, WUNTRACED), target.pid());
    ASSERT_TRUE(WIFSTOPPED(status));
    ::kill(target.pid(), SIGCONT);
    await_change(shared->ticks, shared->ticks.load());
  }
}

TEST(Injector, AThreadOnATinyStackIsNotTouchedBelowItsStackPointer) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "instrumented code needs more stack than this";
#endif
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    // A goroutine's situation: 2 KiB of stack in the middle of memory that is in use to the last byte.
    static std::array<unsigned char, 65536> memory;
    memory.fill(0x5a);
    static ucontext_t main_context, tiny;
    static Counters* counters = &*shared;
    ::getcontext(&tiny);
    tiny.uc_stack.ss_sp = memory.data() + 32768;
    tiny.uc_stack.ss_size = 2048;
    tiny.uc_link = &main_context;
    ready();
    ::makecontext(
        &tiny,
        +[] {
          for (;;) {
            counters->ticks.fetch_add(1);
            const auto untouched = [](unsigned char byte) { return byte == 0x5a; };
            if (!std::all_of(memory.begin(), memory.begin() + 32768, untouched)) counters->wrong.fetch_add(1);
          }
        },
        0);
    ::swapcontext(&main_context, &tiny);
  });
  await_change(shared->ticks, 0);
  inject_often(target.pid(), target.pid(), 50);
  await_change(shared->ticks, shared->ticks.load());
  EXPECT_EQ(shared->wrong.load(), 0);
}

// ---------------------------------------------------------------- which signal ends a run

void catch_all_but(std::initializer_list<int> uncaught) {
  struct sigaction action {};
  action.sa_handler = [](int) { (*in_handler)->handled.fetch_add(1); };
  for (int signal = 1; signal < 32; ++signal) {
    if (std::find(uncaught.begin(), uncaught.end(), signal) == uncaught.end())
      ::sigaction(signal, &action, nullptr);
  }
}

TEST(Injector, AProgramThatCatchesEverySignalSeesNone) {
  for (const bool continue_too : {false, true}) {
    Shared<Counters> shared;
    in_handler = &shared;
    Target target([&](const auto& ready) {
      if (continue_too)
        catch_all_but({});
      else
        catch_all_but({SIGCONT});
      spin(*shared, ready);
    });
    inject_often(target.pid(), target.pid(), 20);
    await_change(shared->ticks, shared->ticks.load());
    EXPECT_EQ(shared->handled.load(), 0);
  }
}

TEST(Injector, ASignalThatWaitsInASignalfdIsNotTaken) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGURG, SIGWINCH, SIGCHLD}) sigaddset(&set, signal);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    const int fd = ::signalfd(-1, &set, SFD_NONBLOCK);
    for (const int signal : {SIGURG, SIGWINCH, SIGCHLD}) ::kill(::getpid(), signal);
    ready();
    while (shared->stop.load() == 0) shared->ticks.fetch_add(1);
    signalfd_siginfo info{};
    while (::read(fd, &info, sizeof info) == sizeof info) shared->handled.fetch_add(1);
    ::_exit(0);
  });
  inject_often(target.pid(), target.pid(), 10);
  shared->stop = 1;
  EXPECT_EQ(target.wait(), 0);
  EXPECT_EQ(shared->handled.load(), 3);
}

/// As the workers of many servers do: the leader does not block what the worker blocks.
void run_blocking_worker(Counters& shared, bool with_pending, const std::function<void()>& ready) {
  std::thread worker([&] {
    sigset_t all, mask, urgent;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    if (with_pending) ::pthread_kill(::pthread_self(), SIGURG);
    shared.tid = ::gettid();
    while (shared.stop.load() == 0) shared.ticks.fetch_add(1);
    ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (const int signal : {SIGURG, SIGWINCH, SIGTERM})
      shared.wrong += sigismember(&mask, signal) == 1 ? 0 : 1;
    sigemptyset(&urgent);
    sigaddset(&urgent, SIGURG);
    const timespec no_time{};
    shared.handled = ::sigtimedwait(&urgent, nullptr, &no_time) == SIGURG ? 1 : 0;
  });
  while (shared.tid.load() == 0) ::usleep(100);
  ready();
  worker.join();
  ::_exit(0);
}

TEST(Injector, AWorkerThatBlocksAllSignalsKeepsItsMaskAndWhatIsPending) {
  for (const bool with_pending : {false, true}) {
    Shared<Counters> shared;
    Target target([&](const auto& ready) { run_blocking_worker(*shared, with_pending, ready); });
    inject_often(target.pid(), shared->tid.load(), 10);
    inject_often(target.pid(), target.pid(), 10);
    shared->stop = 1;
    EXPECT_EQ(target.wait(), 0);
    EXPECT_EQ(shared->wrong.load(), 0);
    EXPECT_EQ(shared->handled.load(), with_pending ? 1 : 0);
  }
}

TEST(Injector, ASeccompFilterIsSuspendedAndThenInForceAgain) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) {
    ready();
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    // Nothing but write, exit_group and sched_yield; getpid kills.
    sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_yield, 0, 1),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    const sock_fprog program{static_cast<unsigned short>(std::size(code)), code};
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    while (shared->stop.load() == 0) {
      ::sched_yield();
      shared->ticks.fetch_add(1);
    }
    ::syscall(SYS_getpid);
    ::_exit(0);
  });
  await_change(shared->ticks, 0);
  inject_often(target.pid(), target.pid(), 10);
  await_change(shared->ticks, shared->ticks.load());
  shared->stop = 1;
  const int status = target.wait();
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) << status;
}

// ---------------------------------------------------------------- scratches across engines

TEST(Injector, AScratchLeftOnPurposeIsUsedAgain) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  const std::string before = maps_of(target.pid());
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  AddressRange first;
  for (int i = 0; i < 3; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    auto injector = Injector::create(frozen.value());
    ASSERT_OK(injector);
    if (i == 0) first = injector.value()->scratch();
    EXPECT_EQ(injector.value()->scratch(), first);
    expect_calls_work(*injector.value(), target.pid(), target.pid());
    ASSERT_OK(injector.value()->leave_mapped());
    ASSERT_OK(frozen->finish());
    EXPECT_NE(maps_of(target.pid()), before);
  }
  auto frozen = Frozen::freeze(process.value());
  ASSERT_OK(frozen);
  ASSERT_OK(remove_leftover_scratch(frozen.value()));
  ASSERT_OK(remove_leftover_scratch(frozen.value()));  // a second time there is nothing to do
  ASSERT_OK(frozen->finish());
  EXPECT_EQ(maps_of(target.pid()), before);
}

TEST(Injector, AfterAPermanentStopNothingIsInjected) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  auto frozen = Frozen::freeze(process.value());
  ASSERT_OK(frozen);
  ASSERT_OK(frozen->make_stop_permanent());
  const auto injector = Injector::create(frozen.value());
  ASSERT_FALSE(injector.ok());
  EXPECT_EQ(injector.error().kind, ErrorKind::kBug);
  ASSERT_OK(frozen->undo_stop());
  EXPECT_OK(Injector::create(frozen.value()));
  ASSERT_OK(frozen->finish());
  await_change(shared->ticks, shared->ticks.load());
}

TEST(Injector, ATargetKilledMeanwhileIsGone) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  auto frozen = Frozen::freeze(process.value());
  ASSERT_OK(frozen);
  auto injector = Injector::create(frozen.value());
  ASSERT_OK(injector);
  ::kill(target.pid(), SIGKILL);
  while (!process.value().pidfd().exited()) ::usleep(100);
  Batch batch;
  batch.call(SYS_getpid, {}, "getpid");
  EXPECT_EQ(injector.value()->run(target.pid(), batch).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(injector.value()->finish().error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(frozen->finish().error().kind, ErrorKind::kTargetGone);
}

// ---------------------------------------------------------------- what it costs (printed, never judged)

TEST(Injector, PrintsItsCost) {
  Shared<Counters> shared;
  Target target([&](const auto& ready) { spin(*shared, ready); });
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  std::vector<Nanos> creates, first_runs, runs, long_runs, finishes;
  const auto timed = [](std::vector<Nanos>& into, const std::function<Status()>& work) {
    const Nanos start = monotonic_now();
    const Status status = work();
    into.push_back(monotonic_now() - start);
    ASSERT_OK(status);
  };
  for (int i = 0; i < 200; ++i) {
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    std::unique_ptr<Injector> injector;
    timed(creates, [&]() -> Status {
      injector = TRY(Injector::create(frozen.value()));
      return {};
    });
    Batch one, hundred;
    one.call(SYS_getpid, {}, "getpid");
    for (int call = 0; call < 100; ++call) hundred.call(SYS_getpid, {}, "getpid");
    timed(first_runs, [&] { return injector->run(target.pid(), one); });
    timed(runs, [&] { return injector->run(target.pid(), one); });
    timed(long_runs, [&] { return injector->run(target.pid(), hundred); });
    timed(finishes, [&] { return injector->finish(); });
    ASSERT_OK(frozen->finish());
  }
  const auto median = [](std::vector<Nanos>& all) {
    std::sort(all.begin(), all.end());
    return to_micros(all[all.size() / 2]);
  };
  fmt::print(
      "create {} us, first run {} us, run of 1 call {} us, of 100 calls {} us, finish {} us (medians)\n",
      median(creates), median(first_runs), median(runs), median(long_runs), median(finishes));
}

}  // namespace
}  // namespace godwit::tracee
