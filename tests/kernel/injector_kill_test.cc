// An engine that injects without pause is killed with SIGKILL, over and over, at random instants. The target,
// which checks every register, its mask and its waits all the time, must never notice.
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>
#include <random>
#include <thread>

#include "engine/base/clock.h"
#include "engine/base/files.h"
#include "engine/tracee/injector.h"
#include "tests/kernel/injector_checker.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::tracee {
namespace {

constexpr int kKills = 1500;

/// What an engine was doing when it died.
enum Phase { kFreezing, kCreating, kRunning, kFinishing, kThawing, kPhases };

struct EngineReport {
  std::atomic<int> phase{kFreezing};
  std::atomic<long> runs{0};
  std::atomic<long> scratches{0};
  std::atomic<int> failures{0};
  char what[400] = {};
};

Status inject_once(Injector& injector, const Frozen& frozen, EngineReport& report, std::mt19937& random) {
  Batch batch;
  const size_t calls = 1 + random() % 40;
  size_t pid_call = 0;
  for (size_t i = 0; i < calls; ++i) pid_call = batch.call(SYS_getpid, {}, "getpid");
  const DataRef time = batch.reserve(sizeof(timespec));
  batch.call(SYS_clock_gettime, {CLOCK_MONOTONIC, time}, "clock_gettime");
  const auto& threads = frozen.threads();
  const size_t chosen = random() % 2 == 0 ? 0 : random() % threads.size();
  TRY(injector.run(threads[chosen].tid, batch));
  if (batch.result(pid_call) != frozen.process().pid() || batch.value<timespec>(time).tv_sec == 0)
    return fail(ErrorKind::kBug, "inject", "a call", "wrong result");
  report.runs.fetch_add(1);
  return {};
}

Status inject_for_ever(pid_t pid, EngineReport& report, unsigned seed) {
  std::mt19937 random(seed);
  const Process process = TRY(Process::open(pid));
  for (;;) {
    report.phase = kFreezing;
    Frozen frozen = TRY(Frozen::freeze(process));
    report.phase = kCreating;
    const auto injector = TRY(Injector::create(frozen));
    report.scratches.fetch_add(1);
    report.phase = kRunning;
    for (auto i = random() % 12; i > 0; --i) TRY(inject_once(*injector, frozen, report, random));
    report.phase = kFinishing;
    if (random() % 4 == 0) TRY(injector->leave_mapped());
    TRY(injector->finish());
    report.phase = kThawing;
    TRY(frozen.finish());
  }
}

/// Forks an engine, lets it work for a while of its own choosing, and kills it.
void run_and_kill_engine(pid_t target, EngineReport& report, std::mt19937& random) {
  const unsigned seed = static_cast<unsigned>(random());
  Target engine([&](const auto& ready) {
    ready();
    const Status status = inject_for_ever(target, report, seed);
    if (report.failures.fetch_add(1) == 0)
      snprintf(report.what, sizeof report.what, "%s", status.error().message().c_str());
    ::_exit(3);
  });
  const auto pidfd = PidFd::open(engine.pid());
  ASSERT_OK(pidfd);
  pollfd polled{pidfd.value().get(), POLLIN, 0};
  // The point of the test is a random instant: anywhere in the first rounds of the engine's work.
  const timespec instant{0, static_cast<long>(random() % 3'000'000)};
  ::ppoll(&polled, 1, &instant, nullptr);
}

/// What a guardian does after an engine's death. The injector before it fills the memory of found
/// instructions, which the forked engines inherit.
Status clean_up(pid_t pid) {
  const Process process = TRY(Process::open(pid));
  Frozen frozen = TRY(Frozen::freeze(process));
  TRY(remove_leftover_scratch(frozen));
  TRY(TRY(Injector::create(frozen))->finish());
  return frozen.finish();
}

void kill_engines(bool signals, int kills) {
  Shared<CheckReport> checks;
  Shared<EngineReport> engines;
  Target target([&](const auto& ready) { run_checker(*checks, signals, ready); });
  const std::string maps = fmt::format("/proc/{}/maps", target.pid());
  const auto before = read_file(maps);
  ASSERT_OK(before);
  ASSERT_OK(clean_up(target.pid()));
  ASSERT_EQ(before.value(), read_file(maps).value());
  std::mt19937 random(std::random_device{}());
  std::array<int, kPhases> died_in{};
  for (int i = 0; i < kills; ++i) {
    run_and_kill_engine(target.pid(), *engines, random);
    ++died_in[static_cast<size_t>(engines->phase.load())];
    if (random() % 2 == 0) continue;  // the next engine comes at once, perhaps before the threads are home
    const int rounds = checks->rounds.load(), sleeps = checks->sleeps.load();
    while ((checks->rounds.load() == rounds || checks->sleeps.load() < sleeps + 2) &&
           state_letter(target.pid()) != 'X' && state_letter(target.pid()) != 'Z')
      ::usleep(200);
    ASSERT_EQ(checks->wrong.load(), 0) << checks->what << " after kill " << i;
    ASSERT_NE(state_letter(target.pid()), 'Z')
        << "the target died after kill " << i << " of status " << target.wait();
    ASSERT_EQ(engines->failures.load(), 0) << engines->what << " before kill " << i;
  }
  ASSERT_OK(clean_up(target.pid()));
  const auto after = read_file(maps);
  ASSERT_OK(after);
  EXPECT_EQ(before.value(), after.value());
  const int rounds = checks->rounds.load();
  await_change(checks->rounds, rounds);
  EXPECT_EQ(checks->wrong.load(), 0) << checks->what;
  fmt::print("{} kills, {} scratches, {} runs, {} rounds checked, {} sleeps ({} EINTR), {} signals\n", kills,
             engines->scratches.load(), engines->runs.load(), rounds, checks->sleeps.load(),
             checks->interrupted.load(), checks->handled.load());
  fmt::print("died while freezing {}, creating {}, running {}, finishing {}, thawing {}\n",
             died_in[kFreezing], died_in[kCreating], died_in[kRunning], died_in[kFinishing],
             died_in[kThawing]);
}

TEST(InjectorKill, TheTargetNeverNoticesTheDeathOfAnEngine) {
  kill_engines(false, kKills);
}
TEST(InjectorKill, NorDoesATargetThatIsFloodedWithSignals) {
  kill_engines(true, kKills);
}

/// An engine whose vector sleeps, so that it surely dies in the middle of it.
void die_in_a_vector(pid_t target, EngineReport& report) {
  Target engine([&](const auto& ready) {
    const auto process = Process::open(target);
    auto frozen = Frozen::freeze(process.value());
    auto injector = Injector::create(frozen.value());
    if (!injector.ok()) ::_exit(1);
    Batch batch;
    const DataRef time = batch.put_value(timespec{0, 20'000'000});
    batch.call(SYS_nanosleep, {time, 0}, "nanosleep");
    report.phase = kRunning;
    ready();
    (void)injector.value()->run(target, batch);
    for (;;) ::pause();
  });
  while (state_letter(target) != 'S') ::usleep(100);  // it never sleeps of its own accord
}

/// The next engine comes while the thread is still inside the stub of the one that died.
TEST(InjectorKill, TheNextEngineLetsAThreadRunOutFirst) {
  Shared<CheckReport> checks;
  Shared<EngineReport> engines;
  Target target([&](const auto& ready) { run_checker(*checks, true, ready); });
  const std::string maps = fmt::format("/proc/{}/maps", target.pid());
  const auto before = read_file(maps);
  ASSERT_OK(before);
  const auto process = Process::open(target.pid());
  ASSERT_OK(process);
  int found_inside = 0;
  for (int i = 0; i < 40; ++i) {
    die_in_a_vector(target.pid(), *engines);
    auto frozen = Frozen::freeze(process.value());
    ASSERT_OK(frozen);
    const uint64_t rip = frozen->leader().original.rip;
    if (i % 2 == 0) {
      auto injector = Injector::create(frozen.value());
      ASSERT_OK(injector);
      if (injector.value()->scratch().contains(RemoteAddr(rip))) ++found_inside;
      EXPECT_FALSE(injector.value()->scratch().contains(RemoteAddr(frozen->leader().original.rip)));
      Batch batch;
      const size_t call = batch.call(SYS_getpid, {}, "getpid");
      ASSERT_OK(injector.value()->run(target.pid(), batch));
      EXPECT_EQ(batch.result(call), target.pid());
      ASSERT_OK(injector.value()->finish());
    } else {
      ASSERT_OK(remove_leftover_scratch(frozen.value()));
    }
    ASSERT_OK(frozen->finish());
    EXPECT_EQ(read_file(maps).value(), before.value());
    await_change(checks->rounds, checks->rounds.load());
    ASSERT_EQ(checks->wrong.load(), 0) << checks->what;
  }
  EXPECT_GT(found_inside, 10);
}

}  // namespace
}  // namespace godwit::tracee
