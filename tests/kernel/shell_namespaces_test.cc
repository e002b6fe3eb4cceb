// Shells in pid and time namespaces of their own.
#include <sched.h>

#include <csignal>

#include "engine/base/clock.h"
#include "tests/kernel/shell_fixture.h"

namespace godwit::tracee {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST_F(ShellTest, ATakenPidIsAClearErrorWithItsRemedy) {
  ASSERT_EQ(text(spawn(kPid)), "");
  Workshop other;
  const Status status = other.spawn(kPid);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::kSystem);
  EXPECT_EQ(status.error().err, EEXIST);
  EXPECT_THAT(text(status), testing::HasSubstr(fmt::format("pid {}", kPid)));
  EXPECT_THAT(text(status), testing::HasSubstr("--pid-namespace new"));
  Workshop third;
  EXPECT_EQ(text(third.spawn({.pid = kPid, .new_pid_namespace = true})), "");
}

TEST_F(ShellTest, APidBeyondTheLimitIsExplained) {
  EXPECT_THAT(text(spawn(1 << 30)), testing::HasSubstr("kernel.pid_max"));
}

TEST_F(ShellTest, LivesInANewPidNamespace) {
  constexpr pid_t kInner = 1234;
  ASSERT_EQ(text(spawn({.pid = kInner, .new_pid_namespace = true})), "");
  EXPECT_EQ(shell_->inner_pid(), kInner);
  EXPECT_NE(shell_->pid(), kInner);
  ASSERT_EQ(text(map_code()), "");
  ASSERT_EQ(text(create_thread(kInner + 5)), "");
  EXPECT_NE(shell_->outer_tid(kInner + 5), kInner + 5);
  Batch batch;
  const size_t pid = batch.call(SYS_getpid, {}, "getpid");
  const size_t tid = batch.call(SYS_gettid, {}, "gettid");
  ASSERT_EQ(text(run(kInner + 5, batch)), "");
  EXPECT_EQ(batch.result(pid), kInner);
  EXPECT_EQ(batch.result(tid), kInner + 5);
  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  ASSERT_EQ(text(set_report(kInner, 5, kDataAt, 10)), "");
  ASSERT_EQ(text(set_report(kInner + 5, 5, kDataAt + 64, 10)), "");
  ASSERT_EQ(text(release()), "");
  expect_report(read_report(pipe.read), 10);
  expect_report(read_report(pipe.read), 10);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8, 0));  // our init ends by itself
}

TEST_F(ShellTest, TheInitIsSmallAndOutlivesWhatTheProcessLeavesBehind) {
  ASSERT_EQ(text(spawn({.pid = 77, .new_pid_namespace = true})), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe hold;
  ASSERT_EQ(text(give(hold.read, 9)), "");
  ASSERT_EQ(text(set(77,
                     [](Registers& r) {
                       r.general.rip = address_of(test_fork);
                       r.general.r12 = 9;
                       r.general.rsp = kDataAt + 512;
                     })),
            "");
  ASSERT_EQ(text(release()), "");
  const std::vector<pid_t> children = shell_->children();
  ASSERT_EQ(children.size(), 2u);
  int status = 0;
  ASSERT_EQ(::waitpid(children[0], &status, 0), children[0]);
  EXPECT_EQ(status, 3 << 8);
  // Its child still waits for the pipe: the namespace must live.
  EXPECT_TRUE(reap(children).empty());
  // Its page and [vsyscall]; a pidfd. It may come to run only now.
  const auto areas = [&] {
    return split(read_file(fmt::format("/proc/{}/maps", children[1])).take(), '\n').size();
  };
  const auto fds = [&] { return list_numbers(fmt::format("/proc/{}/fd", children[1])).take().size(); };
  const Nanos hang = monotonic_now() + seconds(10);
  while ((areas() > 2 || fds() > 1) && monotonic_now() < hang) ::sched_yield();
  EXPECT_LE(areas(), 2u);
  EXPECT_LE(fds(), 1u);
  EXPECT_EQ(::write(hold.write.get(), "x", 1), 1);
  ASSERT_EQ(::waitpid(children[1], &status, 0), children[1]);
  EXPECT_EQ(status, 0);
}

TEST_F(ShellTest, MayBePidOneItself) {
  ASSERT_EQ(text(spawn({.pid = 1, .new_pid_namespace = true})), "");
  ASSERT_EQ(text(map_code()), "");
  Batch batch;
  const size_t pid = batch.call(SYS_getpid, {}, "getpid");
  ASSERT_EQ(text(run(batch)), "");
  EXPECT_EQ(batch.result(pid), 1);
  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  ASSERT_EQ(text(set_report(1, 5, kDataAt, 10)), "");
  ASSERT_EQ(text(release()), "");
  expect_report(read_report(pipe.read), 10);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

/// How far `clock` of a shell with these options is ahead of ours must be `expected`, within the time that
/// asking takes.
void expect_offset(Workshop& shop, clockid_t clock, Nanos expected) {
  Batch batch;
  const DataRef now = batch.reserve(sizeof(timespec));
  batch.call(SYS_clock_gettime, {clock, now}, "clock_gettime");
  const Nanos before = read_clock(clock);
  ASSERT_EQ(text(shop.run(batch)), "");
  const Nanos after = read_clock(clock);
  const timespec got = batch.value<timespec>(now);
  const Nanos theirs = seconds(got.tv_sec) + Nanos(got.tv_nsec);
  EXPECT_LE((before + expected).count(), theirs.count());
  EXPECT_GE((after + expected).count(), theirs.count());
}

TEST_F(ShellTest, SeesItsOwnClocks) {
  const ShellOptions options{
      .pid = kPid, .monotonic_offset = milliseconds(-1500), .boottime_offset = milliseconds(3600'250)};
  ASSERT_EQ(text(spawn(options)), "");
  expect_offset(*this, CLOCK_MONOTONIC, options.monotonic_offset);
  expect_offset(*this, CLOCK_BOOTTIME, options.boottime_offset);
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
}

/// In an engine whose own clocks are shifted.
void check_nested_clocks() {
  Workshop shop;
  const ShellOptions options{
      .pid = kPid, .monotonic_offset = milliseconds(500'500), .boottime_offset = milliseconds(2'000)};
  ASSERT_EQ(text(shop.spawn(options)), "");
  expect_offset(shop, CLOCK_MONOTONIC, options.monotonic_offset);
  expect_offset(shop, CLOCK_BOOTTIME, options.boottime_offset);
}

/// The exit status of a child that runs `work`: 0 if no expectation failed in it.
int in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    std::fflush(nullptr);
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(ShellNamespaces, AnEngineInATimeNamespaceCountsFromItsOwnClocks) {
  const int status = in_child([] {
    ASSERT_EQ(::unshare(CLONE_NEWTIME), 0);  // for the children
    ASSERT_EQ(text(write_file("/proc/self/timens_offsets", "monotonic 1000 7\nboottime -1 5\n")), "");
    EXPECT_EQ(in_child(check_nested_clocks), 0);
  });
  EXPECT_EQ(status, 0);
}

TEST_F(ShellTest, BothNamespacesAtOnce) {
  const ShellOptions options{.pid = 99, .new_pid_namespace = true, .monotonic_offset = seconds(5)};
  ASSERT_EQ(text(spawn(options)), "");
  expect_offset(*this, CLOCK_MONOTONIC, options.monotonic_offset);
  EXPECT_EQ(text(create_thread(100)), "");
}

}  // namespace
}  // namespace godwit::tracee
