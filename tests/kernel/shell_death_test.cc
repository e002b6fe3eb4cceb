// A shell must not survive its engine before the release, and must not notice its end afterwards.
#include <poll.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <random>

#include "engine/base/clock.h"
#include "tests/kernel/shell_fixture.h"

namespace godwit::tracee {
namespace {

/// Reaps everything that came to us as pid 1; gives the pids that still run although nothing should.
std::vector<pid_t> survivors() {
  std::vector<pid_t> alive;
  std::vector<int> pids = list_numbers("/proc").take();
  // The init of a pid namespace, older than its process, ends when that has been reaped.
  std::reverse(pids.begin(), pids.end());
  for (const int pid : pids) {
    if (pid == ::getpid()) continue;
    Result<PidFd> process = PidFd::open(pid);
    if (!process.ok()) continue;
    pollfd wait{process->get(), POLLIN, 0};
    constexpr int kHang = 10'000;  // milliseconds: only to fail instead of hanging
    if (::poll(&wait, 1, kHang) != 1) alive.push_back(pid);
    ::waitpid(pid, nullptr, WNOHANG);
  }
  return alive;
}

void spin_for(Nanos time) {  // a random instant, not a wait for something
  const Nanos end = monotonic_now() + time;
  while (monotonic_now() < end) {
  }
}

/// In a forked engine: builds shells until it is killed.
[[noreturn]] void build_forever(bool new_namespace) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) {
    Workshop shop;
    const bool ok = shop.spawn({.pid = kPid, .new_pid_namespace = new_namespace}).ok() &&
                    shop.map_code().ok() && shop.create_thread(kPid + 1).ok() &&
                    shop.create_thread(kPid + 2).ok() && shop.set_report(kPid, 5, kDataAt, 1).ok() &&
                    shop.set_report(kPid + 1, 5, kDataAt, 1).ok();
    if (!ok) ::_exit(1);
  }
}

void kill_engines(bool new_namespace, int rounds) {
  std::mt19937 random(static_cast<unsigned>(rounds));
  std::uniform_int_distribution<int> micros(0, 4000);
  for (int i = 0; i < rounds; ++i) {
    const pid_t engine = ::fork();
    if (engine == 0) build_forever(new_namespace);
    spin_for(std::chrono::microseconds(micros(random)));
    ASSERT_EQ(::kill(engine, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(engine, &status, 0), engine);
    ASSERT_EQ(status, SIGKILL) << "the engine failed by itself";
    ASSERT_THAT(survivors(), testing::IsEmpty()) << "round " << i;
  }
}

TEST(ShellDeath, NoShellSurvivesAKilledEngine) {
  kill_engines(false, 300);
}
TEST(ShellDeath, NorDoesOneInANewNamespace) {
  kill_engines(true, 150);
}

/// A forked engine that tells `ready` when it is about to release a shell of two threads, which report to
/// `reports`.
[[noreturn]] void build_and_release(const Fd& ready, const Fd& reports, bool new_namespace) {
  Workshop shop;
  const bool ok = shop.spawn({.pid = kPid, .new_pid_namespace = new_namespace}).ok() &&
                  shop.map_code().ok() && shop.give(reports, 5).ok() && shop.create_thread(kPid + 1).ok() &&
                  shop.set_report(kPid, 5, kDataAt, 10).ok() &&
                  shop.set_report(kPid + 1, 5, kDataAt + 64, 10).ok();
  if (!ok || ::write(ready.get(), "r", 1) != 1) ::_exit(1);
  if (!shop.release().ok()) ::_exit(2);
  for (;;) ::pause();
}

void kill_around_release(bool new_namespace, int rounds) {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> micros(0, 800);
  int ran = 0;
  for (int i = 0; i < rounds; ++i) {
    Pipe ready;
    Pipe reports;
    const pid_t engine = ::fork();
    if (engine == 0) build_and_release(ready.write, reports.write, new_namespace);
    ready.write.reset();
    reports.write.reset();
    char byte = 0;
    ASSERT_EQ(::read(ready.read.get(), &byte, 1), 1);
    spin_for(std::chrono::microseconds(micros(random)));
    ASSERT_EQ(::kill(engine, SIGKILL), 0);
    ASSERT_EQ(::waitpid(engine, nullptr, 0), engine);
    ASSERT_THAT(survivors(), testing::IsEmpty());
    std::array<Report, 3> got{};
    const ssize_t size = ::read(reports.read.get(), got.data(), sizeof got);
    // All of it or nothing of it.
    if (size == 0) continue;
    ASSERT_EQ(size, static_cast<ssize_t>(2 * sizeof(Report))) << "round " << i;
    expect_report(got[0], 10);
    expect_report(got[1], 10);
    ++ran;
  }
  fmt::print("engine killed around the release: {} of {} processes ran, the others never began\n", ran,
             rounds);
}

TEST(ShellDeath, AroundTheReleaseAllOrNothingRuns) {
  kill_around_release(false, 300);
}
TEST(ShellDeath, AroundTheReleaseAllOrNothingRunsInANewNamespace) {
  kill_around_release(true, 100);
}

/// A released process that waits in read(2) when its engine ends.
void outlive_the_engine(bool new_namespace) {
  Pipe reports;
  Pipe hold;
  const pid_t engine = ::fork();
  if (engine == 0) {
    Workshop shop;
    const bool ok = shop.spawn({.pid = kPid, .new_pid_namespace = new_namespace}).ok() &&
                    shop.map_code().ok() && shop.give(reports.write, 5).ok() &&
                    shop.give(hold.read, 9).ok() && shop.set_blocked_read(kPid, 9, 5).ok() &&
                    shop.release().ok();
    ::_exit(ok ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(engine, &status, 0), engine);
  ASSERT_EQ(status, 0);
  hold.read.reset();
  reports.write.reset();
  EXPECT_EQ(finish_read(hold.write, reports.read), 1);
  EXPECT_THAT(survivors(), testing::IsEmpty());
}

TEST(ShellDeath, TheReleasedProcessOutlivesTheEngine) {
  outlive_the_engine(false);
}
TEST(ShellDeath, TheReleasedProcessAndItsInitOutliveTheEngine) {
  outlive_the_engine(true);
}

TEST_F(ShellTest, AKilledShellIsATargetThatIsGone) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
  ASSERT_EQ(text(create_thread(kPid + 2)), "");
  ASSERT_EQ(::kill(kPid, SIGKILL), 0);
  for (const pid_t tid : {kPid + 1, kPid, kPid + 2}) {
    Batch batch;
    batch.call(SYS_getpid, {}, "getpid");
    EXPECT_EQ(run(tid, batch).error().kind, ErrorKind::kTargetGone);
  }
  EXPECT_EQ(create_thread(kPid + 3).error().kind, ErrorKind::kTargetGone);
  ASSERT_EQ(text(end_shell()), "");  // reaps, and does not wait for what is not there
  EXPECT_THAT(survivors(), testing::IsEmpty());
}

TEST_F(ShellTest, ADyingBatchIsATargetThatIsGone) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
  Batch batch;
  batch.call(SYS_exit_group, {9}, "exit_group");
  EXPECT_EQ(run(kPid + 1, batch).error().kind, ErrorKind::kTargetGone);
  ASSERT_EQ(text(end_shell()), "");
  EXPECT_THAT(survivors(), testing::IsEmpty());
}

TEST_F(ShellTest, ABatchThatUnmapsTheScratchIsABug) {
  ASSERT_EQ(text(spawn(kPid)), "");
  Batch batch;
  batch.call(SYS_munmap, {shell_->scratch().start, shell_->scratch().size()}, "munmap");
  EXPECT_EQ(run(batch).error().kind, ErrorKind::kBug);
}

TEST(ShellThread, ItsEndKillsTheShell) {
  std::unique_ptr<Shell> shell;
  {
    Workshop shop;
    ASSERT_EQ(text(shop.spawn(kPid)), "");
    ASSERT_EQ(text(shop.create_thread(kPid + 1)), "");
    shell = std::move(shop.shell_);
  }
  shell.reset();  // reaps from another thread
  EXPECT_THAT(survivors(), testing::IsEmpty());
}

}  // namespace
}  // namespace godwit::tracee
