// The shell against the real kernel: what it is when bare, batches, threads, registers, signals, release.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <csignal>

#include "engine/base/clock.h"
#include "engine/tracee/shell_scratch.h"
#include "tests/kernel/shell_fixture.h"

namespace godwit::tracee {
namespace {

TEST_F(ShellTest, IsBare) {
  ASSERT_EQ(text(spawn(kPid)), "");
  EXPECT_EQ(shell_->pid(), kPid);
  EXPECT_EQ(shell_->inner_pid(), kPid);
  const std::string maps = read_file(fmt::format("/proc/{}/maps", kPid)).take();
  for (const std::string_view line : split(maps, '\n')) {
    if (line.find("[vsyscall]") != std::string_view::npos) continue;
    EXPECT_TRUE(line.starts_with(fmt::format("{}", shell_->scratch()))) << line;
  }
  EXPECT_TRUE(list_numbers(fmt::format("/proc/{}/fd", kPid)).take().empty());
  const std::string status = read_file(fmt::format("/proc/{}/status", kPid)).take();
  EXPECT_EQ(field(status, "SigBlk:"), "fffffffffffbfeef");  // all but SIGKILL, SIGSTOP and SIGTRAP
  EXPECT_EQ(field(status, "SigIgn:"), "0000000000000000");
  EXPECT_EQ(field(status, "SigCgt:"), "0000000000000000");
}

TEST_F(ShellTest, RunsBatches) {
  ASSERT_EQ(text(spawn(kPid)), "");
  Batch batch;
  const size_t pid = batch.call(SYS_getpid, {}, "getpid");
  const DataRef name = batch.put_string("godwit-shell");
  batch.call(SYS_prctl, {PR_SET_NAME, name}, "prctl(PR_SET_NAME)");
  const DataRef got = batch.reserve(16);
  batch.call(SYS_prctl, {PR_GET_NAME, got}, "prctl(PR_GET_NAME)");
  const size_t bad = batch.call_may_fail(SYS_close, {77}, "close(77)");
  ASSERT_EQ(text(run(batch)), "");
  EXPECT_EQ(batch.result(pid), kPid);
  EXPECT_EQ(batch.result(bad), -EBADF);
  EXPECT_STREQ(reinterpret_cast<const char*>(batch.bytes(got).data()), "godwit-shell");
}

TEST_F(ShellTest, RunsEveryCallAndNamesTheFirstThatFailed) {
  ASSERT_EQ(text(spawn(kPid)), "");
  Batch batch;
  batch.call(SYS_close, {77}, "close fd 77");
  const size_t after = batch.call(SYS_getpid, {}, "getpid");
  const Status status = run(batch);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().operation, "close fd 77");
  EXPECT_EQ(status.error().err, EBADF);
  EXPECT_EQ(batch.result(after), kPid);
}

TEST_F(ShellTest, SplitsLongBatchesAndRefusesTooMuchData) {
  ASSERT_EQ(text(spawn(kPid)), "");
  Batch batch;
  constexpr size_t kCalls = 3 * ShellScratch::kCallsPerRound + 1;
  for (size_t i = 0; i < kCalls; ++i) batch.call(SYS_getppid, {}, "getppid");
  const DataRef last = batch.reserve(Shell::kMaxBatchData - 16);
  batch.call(SYS_getrandom, {last, last.size, 0}, "getrandom");
  ASSERT_EQ(text(run(batch)), "");
  EXPECT_TRUE(std::all_of(batch.calls().begin(), batch.calls().end() - 1,
                          [](const Call& c) { return c.result == ::getpid(); }));
  const std::span<const std::byte> tail = batch.bytes(last).last(16);
  EXPECT_TRUE(std::any_of(tail.begin(), tail.end(), [](std::byte b) { return b != std::byte{}; }));
  Batch much;
  much.reserve(Shell::kMaxBatchData + 1);
  EXPECT_EQ(run(much).error().kind, ErrorKind::kBug);
}

TEST_F(ShellTest, TwoThreadsRunFromTheirRegisters) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  ASSERT_EQ(text(create_thread(kPid + 7)), "");
  EXPECT_THAT(shell_->threads(), testing::ElementsAre(kPid, kPid + 7));
  ASSERT_EQ(text(set_report(kPid + 7, 5, kDataAt, 1000)), "");
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt + 64, 2000)), "");
  Batch late;  // registers set before must survive a batch
  late.call(SYS_getpid, {}, "getpid");
  ASSERT_EQ(text(run(kPid + 7, late)), "");
  ASSERT_EQ(text(release()), "");
  std::vector<Report> reports{read_report(pipe.read), read_report(pipe.read)};
  std::sort(reports.begin(), reports.end(), [](const Report& a, const Report& b) { return a.r12 < b.r12; });
  expect_report(reports[0], 1000);
  expect_report(reports[1], 2000);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, DescriptorsOfTheThreadAreTheProcesssUntilTheRelease) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe reports;
  Pipe hold;
  ASSERT_EQ(text(give(reports.write, 5)), "");
  ASSERT_EQ(text(give(hold.read, 9)), "");
  EXPECT_THAT(list_numbers(fmt::format("/proc/{}/fd", kPid)).take(), testing::ElementsAre(5, 9));
  ASSERT_EQ(text(set_blocked_read(kPid, 9, 5)), "");
  ASSERT_EQ(text(release()), "");
  EXPECT_TRUE(shell_->released());
  ASSERT_EQ(text(thread_->call([&]() -> Status {
              if (::fcntl(5, F_GETFD) >= 0)
                return fail(ErrorKind::kBug, "fcntl", "the thread still has fd 5");
              const Fd own(::open("/dev/null", O_RDONLY | O_CLOEXEC));
              const std::vector<int> theirs = TRY(list_numbers(fmt::format("/proc/{}/fd", kPid)));
              if (theirs != std::vector<int>{5, 9}) return fail(ErrorKind::kBug, "list fds", "not {5, 9}");
              return {};
            })),
            "");
  hold.read.reset();
  EXPECT_EQ(finish_read(hold.write, reports.read), 1);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, RestartsAnInterruptedReadInEveryThread) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe reports;
  Pipe hold;
  ASSERT_EQ(text(give(reports.write, 5)), "");
  ASSERT_EQ(text(give(hold.read, 9)), "");
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt + 256, 1)), "");  // reports and ends, the other blocks
  ASSERT_EQ(text(set_blocked_read(kPid + 1, 9, 5)), "");
  ASSERT_EQ(text(release()), "");
  expect_report(read_report(reports.read), 1);
  EXPECT_EQ(finish_read(hold.write, reports.read), 1);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

class InterruptedCallTest : public ShellTest, public testing::WithParamInterface<long> {};

TEST_P(InterruptedCallTest, GoesOnForWhatIsLeft) {
  constexpr Nanos kTime = std::chrono::milliseconds(30);
  const long nr = GetParam();
  Pipe reports;
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  ASSERT_EQ(text(give(reports.write, 5)), "");
  Batch batch;
  const DataRef time = batch.put_value(to_timespec(kTime));
  if (nr == SYS_clock_nanosleep) batch.call(nr, {CLOCK_MONOTONIC, 0, time, kDataAt + 512}, "sleep");
  if (nr == SYS_futex) batch.call(nr, {kDataAt + 64, 0, 0, time, 0, 0}, "futex(FUTEX_WAIT)");
  if (nr == SYS_poll) batch.call(nr, {0, 0, kTime / std::chrono::milliseconds(1)}, "poll");
  const Nanos begin = monotonic_now();
  int64_t interrupted = 0;
  ASSERT_EQ(text(set_interrupted(kPid, batch, 5, interrupted)), "");
  EXPECT_EQ(interrupted, -516);
  Batch later;  // on the same thread: the wait is not forgotten
  later.call(SYS_getpid, {}, "getpid");
  ASSERT_EQ(text(run(later)), "");
  ASSERT_EQ(text(release()), "");
  int64_t result = -1;
  EXPECT_EQ(::read(reports.read.get(), &result, sizeof result), ssize_t{sizeof result});
  EXPECT_EQ(result, nr == SYS_futex ? -ETIMEDOUT : 0);
  EXPECT_GE(monotonic_now() - begin, kTime);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

INSTANTIATE_TEST_SUITE_P(Calls, InterruptedCallTest,
                         testing::Values(SYS_clock_nanosleep, SYS_futex, SYS_poll));

TEST_F(ShellTest, TellsWhatAnInterruptedCallEndedWith) {
  Pipe reports;
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  ASSERT_EQ(text(give(reports.write, 5)), "");
  Batch batch;
  const DataRef time = batch.put_value(timespec{1000, 0});
  batch.call(SYS_futex, {kDataAt + 64, 0, 42, time, 0, 0}, "futex(FUTEX_WAIT) for a word that is not 42");
  int64_t result = 0;
  ASSERT_EQ(text(set_interrupted(kPid, batch, 5, result)), "");
  EXPECT_EQ(result, -EAGAIN);
  ASSERT_EQ(text(release()), "");
  EXPECT_EQ(::read(reports.read.get(), &result, sizeof result), ssize_t{sizeof result});
  EXPECT_EQ(result, -EAGAIN);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, KeepsDispositionsAndPendingSignals) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe reports;
  Pipe hold;
  ASSERT_EQ(text(give(reports.write, 5)), "");
  ASSERT_EQ(text(give(hold.read, 9)), "");
  Batch batch;
  const std::array<uint64_t, 4> ignore{1};  // struct sigaction of the kernel with SIG_IGN
  const DataRef action = batch.put_value(ignore);
  batch.call(SYS_rt_sigaction, {SIGTRAP, action, 0, 8}, "sigaction(SIGTRAP)");
  batch.call(SYS_rt_sigaction, {SIGSEGV, action, 0, 8}, "sigaction(SIGSEGV)");
  batch.call(SYS_kill, {kPid, SIGUSR1}, "kill(SIGUSR1)");
  ASSERT_EQ(text(run(batch)), "");
  Batch more;
  const size_t pid = more.call(SYS_getpid, {}, "getpid");
  ASSERT_EQ(text(run(more)), "");
  EXPECT_EQ(more.result(pid), kPid);
  const uint64_t only_usr1 = uint64_t{1} << (SIGUSR1 - 1);
  ASSERT_EQ(text(set_blocked_read(kPid, 9, 5, only_usr1)), "");
  ASSERT_EQ(text(release()), "");
  const std::string status = read_file(fmt::format("/proc/{}/status", kPid)).take();
  EXPECT_EQ(field(status, "TracerPid:"), "0");
  EXPECT_EQ(field(status, "SigIgn:"), "0000000000000410");
  EXPECT_EQ(field(status, "ShdPnd:"), "0000000000000200");
  EXPECT_EQ(field(status, "SigBlk:"), "0000000000000200");
  EXPECT_EQ(finish_read(hold.write, reports.read), 1);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, DeliversAPendingSignalAtTheRelease) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  ASSERT_EQ(::kill(kPid, SIGUSR1), 0);
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt, 1)), "");
  ASSERT_EQ(text(release()), "");
  EXPECT_THAT(ends(), testing::ElementsAre(SIGUSR1));
}

TEST_F(ShellTest, PassesOverStopsFromOutside) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
  for (const int signal : {SIGSTOP, SIGCONT, SIGTRAP, SIGSTOP}) {
    ASSERT_EQ(::kill(kPid, signal), 0);
    for (const pid_t tid : {kPid, kPid + 1}) {
      Batch batch;
      const size_t got = batch.call(SYS_gettid, {}, "gettid");
      ASSERT_EQ(text(run(tid, batch)), "");
      EXPECT_EQ(batch.result(got), tid);
    }
  }
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt, 10)), "");
  ASSERT_EQ(text(set_report(kPid + 1, 5, kDataAt + 64, 10)), "");
  ASSERT_EQ(::kill(kPid, SIGCONT), 0);
  ASSERT_EQ(text(release()), "");
  expect_report(read_report(pipe.read), 10);
  expect_report(read_report(pipe.read), 10);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, RunsBatchesBeyondASeccompFilter) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  const sock_filter kill_all{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = SECCOMP_RET_KILL_PROCESS};
  const uint64_t program[2] = {1, kDataAt + 16};  // struct sock_fprog
  std::array<std::byte, 24> image{};
  std::memcpy(image.data(), program, sizeof program);
  std::memcpy(image.data() + 16, &kill_all, sizeof kill_all);
  const iovec local{image.data(), image.size()};
  const iovec remote{reinterpret_cast<void*>(kDataAt), image.size()};
  ASSERT_EQ(::process_vm_writev(shell_->pid(), &local, 1, &remote, 1, 0), 24);
  Batch batch;
  batch.call(SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0}, "prctl(PR_SET_NO_NEW_PRIVS)");
  batch.call(SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0, RemoteAddr(kDataAt)}, "seccomp(SET_MODE_FILTER)");
  ASSERT_EQ(text(run(batch)), "");
  Batch more;
  more.call(SYS_getpid, {}, "getpid");
  EXPECT_EQ(text(run(more)), "");
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt, 1)), "");
  ASSERT_EQ(text(release()), "");
  EXPECT_EQ(ends().front() & 0x7f, SIGSYS);  // and the filter works from then on
}

TEST_F(ShellTest, EndsThreads) {
  ASSERT_EQ(text(spawn(kPid)), "");
  for (const pid_t tid : {kPid + 1, kPid + 2, kPid + 3}) ASSERT_EQ(text(create_thread(tid)), "");
  ASSERT_EQ(text(thread_->call([&] { return shell_->end_thread(kPid + 2); })), "");
  EXPECT_THAT(shell_->threads(), testing::ElementsAre(kPid, kPid + 1, kPid + 3));
  EXPECT_THAT(list_numbers(fmt::format("/proc/{}/task", kPid)).take(),
              testing::ElementsAre(kPid, kPid + 1, kPid + 3));
  Batch batch;
  EXPECT_EQ(run(kPid + 2, batch).error().kind, ErrorKind::kBug);
  EXPECT_EQ(text(create_thread(kPid + 2)), "");  // the number is free again
  const Status taken = create_thread(kPid + 3);
  EXPECT_EQ(taken.error().err, EEXIST);
}

TEST_F(ShellTest, KeepsClearOfTheLayout) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  const AddressRange before = shell_->scratch();
  Layout layout{Vma{.range = range_of(kCodeAt, kCodeAt + 2 * kPageSize)}};
  const auto keep_clear = [&] { return thread_->call([&] { return shell_->keep_clear_of(layout); }); };
  ASSERT_EQ(text(keep_clear()), "");
  EXPECT_EQ(shell_->scratch(), before);

  // 1 MiB below a stack is too near: it grows.
  layout.insert(layout.begin(),
                Vma{.range = range_of(before.end.value() + 1_MiB, before.end.value() + 2_MiB)});
  // Memory that stands in the hole already, unknown to the layout, must not be overwritten.
  const RemoteAddr hole = *find_hole(layout, ShellScratch::kSize, 4_MiB);
  Batch squat;
  squat.call(
      SYS_mmap,
      {hole, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0},
      "mmap(in the hole)");
  ASSERT_EQ(text(run(squat)), "");
  ASSERT_EQ(text(keep_clear()), "");
  const AddressRange after = shell_->scratch();
  EXPECT_FALSE(after.overlaps(range_of(before.start.value() - 4_MiB, before.end.value() + 6_MiB)));
  EXPECT_FALSE(after.overlaps({hole, hole + kPageSize}));
  const std::string maps = read_file(fmt::format("/proc/{}/maps", kPid)).take();
  EXPECT_EQ(maps.find(fmt::format("{:x}-", before.start.value())), std::string::npos);
  EXPECT_NE(maps.find(fmt::format("{}", after)), std::string::npos);

  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  ASSERT_EQ(text(create_thread(kPid + 1)), "");
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt, 10)), "");
  ASSERT_EQ(text(set_report(kPid + 1, 5, kDataAt + 64, 10)), "");
  ASSERT_EQ(text(release()), "");
  expect_report(read_report(pipe.read), 10);
  expect_report(read_report(pipe.read), 10);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

TEST_F(ShellTest, RefusesAnIncompleteRelease) {
  ASSERT_EQ(text(spawn(kPid)), "");
  ASSERT_EQ(text(map_code()), "");
  EXPECT_THAT(text(release()), testing::HasSubstr("registers were not set"));
  ASSERT_EQ(text(set_report(kPid, 5, kDataAt, 10)), "");
  const Status nowhere = thread_->call([&] { return shell_->release(RemoteAddr(kCodeAt + 1)); });
  EXPECT_THAT(text(nowhere), testing::HasSubstr("no `syscall` at"));
  const Status unmapped = thread_->call([&] { return shell_->release(RemoteAddr(4096)); });
  EXPECT_FALSE(unmapped.ok());
  const Status registers = set(kPid, [](Registers& r) { r.general.fs_base = ~uint64_t{0}; });
  EXPECT_FALSE(registers.ok());  // refused at once, not in the release
  EXPECT_FALSE(shell_->released());
}

TEST(ShellThread, SpawnsOnlyOnItsOwnThreadAndOnce) {
  EXPECT_EQ(Shell::spawn({.pid = kPid}).error().kind, ErrorKind::kBug);
  Workshop shop;
  ASSERT_EQ(text(shop.spawn(kPid)), "");
  const Status again = shop.thread_->call([]() -> Status {
    TRY(Shell::spawn({.pid = kPid + 1}));
    return {};
  });
  EXPECT_EQ(again.error().kind, ErrorKind::kBug);
}

TEST_F(ShellTest, Costs) {
  constexpr int kThreads = 100;
  constexpr int kRuns = 200;
  const auto timed = [](const char* what, int count, const std::function<Status()>& work) {
    const Nanos start = monotonic_now();
    EXPECT_EQ(text(work()), "");
    fmt::print("{}: {:.1f} us\n", what,
               static_cast<double>((monotonic_now() - start).count()) / 1000 / count);
  };
  timed("spawn", 1, [&] { return spawn(kPid); });
  ASSERT_EQ(text(map_code()), "");
  const auto runs = [&](size_t calls) {
    return thread_->call([&]() -> Status {
      for (int i = 0; i < kRuns; ++i) {
        Batch batch;
        for (size_t c = 0; c < calls; ++c) batch.call(SYS_getppid, {}, "getppid");
        TRY(shell_->run(kPid, batch));
      }
      return {};
    });
  };
  timed("run, 1 call", kRuns, [&] { return runs(1); });
  timed("run, 100 calls", kRuns, [&] { return runs(100); });
  timed("create_thread", kThreads, [&] {
    return thread_->call([&]() -> Status {
      for (int i = 1; i <= kThreads; ++i) TRY(shell_->create_thread(kPid + i));
      return {};
    });
  });
  timed("interrupt_inside", kThreads, [&] {
    return thread_->call([&]() -> Status {
      for (int i = 1; i <= kThreads; ++i) {
        Batch batch;
        batch.call(SYS_clock_nanosleep, {CLOCK_MONOTONIC, 0, batch.put_value(timespec{1000, 0}), 0}, "sleep");
        TRY(shell_->interrupt_inside(kPid + i, batch));
      }
      return {};
    });
  });
  Pipe pipe;
  ASSERT_EQ(text(give(pipe.write, 5)), "");
  timed("set_registers and mask, each", kThreads + 1, [&]() -> Status {
    for (int i = 0; i <= kThreads; ++i) TRY(set_report(kPid + i, 5, kDataAt, 1));
    return {};
  });
  timed("release of 101 threads", 1, [&] { return release(); });
  for (int i = 0; i <= kThreads; ++i) expect_report(read_report(pipe.read), 1);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

}  // namespace
}  // namespace godwit::tracee
