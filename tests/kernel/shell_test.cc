// The shell against the real kernel: pids, threads, registers, release, and that no shell survives its
// engine. Runs as pid 1 of a pid namespace of its own, so that pids can be chosen freely and orphans come to
// the test.
#include "engine/tracee/shell.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <random>

#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/pidfd.h"
#include "engine/base/units.h"
#include "engine/tracee/shell_scratch.h"

// What the rebuilt processes run: position independent, one page.
//   report: writes what the registers hold to rdi and ends this thread
//   after_read: the instruction behind a read(2): reports its result
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix
    .global test_code, test_report, test_after_read, test_end
test_code:
    syscall
    ud2
test_report:                    # rdi fd, rsi a place for 40 bytes
    mov [rsi], r12
    mov [rsi + 8], r15
    movdqu [rsi + 16], xmm0
    mov [rsi + 32], rbp
    mov edx, 40
    mov eax, 1
    syscall
    mov edi, 3
    mov eax, 60
    syscall
    ud2
    syscall                     # the read
test_after_read:                # r12 fd, r13 a place for 8 bytes
    mov [r13], rax
    mov edi, r12d
    mov rsi, r13
    mov edx, 8
    mov eax, 1
    syscall
    mov edi, 3
    mov eax, 231
    syscall
    ud2
test_end:
    .att_syntax
    .popsection
)");
extern "C" {
extern const char test_code[];
extern const char test_report[];
extern const char test_after_read[];
extern const char test_end[];
}

namespace godwit::tracee {
namespace {

constexpr uint64_t kCodeAt = 0x7e1234560000;
constexpr uint64_t kDataAt = kCodeAt + kPageSize;
constexpr pid_t kPid = 4242;

uint64_t address_of(const char* label) {
  return kCodeAt + static_cast<uint64_t>(label - test_code);
}

/// A word for EXPECT: empty when all is well.
std::string text(const Status& status) {
  return status.ok() ? "" : status.error().message();
}

struct Report {
  uint64_t r12 = 0, r15 = 0, xmm[2]{}, rbp = 0;
};

/// Ends of pipes that the shell gets by number.
struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
  Fd read, write;
};

class ShellTest : public testing::Test {
 protected:
  void SetUp() override { thread_ = ShellThread::start().take(); }
  void TearDown() override {
    text(thread_->call([&] {
      shell_.reset();
      return Status{};
    }));
  }

  Status spawn(ShellOptions options) {
    return thread_->call([&]() -> Status {
      shell_ = TRY(Shell::spawn(options));
      return {};
    });
  }
  Status spawn(pid_t pid) { return spawn(ShellOptions{.pid = pid}); }
  Status run(Batch& batch) { return run(shell_->inner_pid(), batch); }
  Status run(pid_t tid, Batch& batch) {
    return thread_->call([&] { return shell_->run(tid, batch); });
  }

  Status map_code() {
    Batch batch;
    for (const uint64_t at : {kCodeAt, kDataAt})
      batch.call(SYS_mmap,
                 {at, kPageSize, PROT_READ | PROT_WRITE | PROT_EXEC,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0},
                 "mmap(test code)");
    TRY(run(batch));
    const iovec local{const_cast<char*>(test_code), static_cast<size_t>(test_end - test_code)};
    const iovec remote{reinterpret_cast<void*>(kCodeAt), local.iov_len};
    if (::process_vm_writev(shell_->pid(), &local, 1, &remote, 1, 0) < 0)
      return fail_errno("process_vm_writev", "test code");
    return {};
  }

  /// Our descriptor `ours` becomes number `theirs` of the shell.
  Status give(const Fd& ours, int theirs) {
    return thread_->call([&]() -> Status {
      const PidFd engine = TRY(PidFd::open(::getpid()));
      const Fd got = TRY(engine.get_fd(ours.get()));
      if (::dup2(got.get(), theirs) < 0) return fail_errno("dup2", fmt::format("fd {}", theirs));
      return {};
    });
  }

  Status set(pid_t tid, const std::function<void(Registers&)>& change, uint64_t mask = 0) {
    return thread_->call([&]() -> Status {
      Registers registers = TRY(read_registers(shell_->outer_tid(tid)));
      registers.general.orig_rax = ~uint64_t{0};
      change(registers);
      TRY(shell_->set_registers(tid, registers));
      return shell_->set_signal_mask(tid, mask);
    });
  }
  Status set_report(pid_t tid, int fd, uint64_t place, uint64_t value) {
    return set(tid, [&](Registers& r) {
      r.general.rip = address_of(test_report);
      r.general.rdi = static_cast<uint64_t>(fd);
      r.general.rsi = place;
      r.general.r12 = value;
      r.general.r15 = value + 1;
      r.general.rbp = value + 2;
      const uint64_t xmm0[2] = {value + 3, value + 4};
      std::memcpy(r.xstate.data() + 160, xmm0, sizeof xmm0);
      r.xstate[512] |= std::byte{2};  // XSTATE_BV: SSE state is there
    });
  }
  Status release() {
    return thread_->call([&] { return shell_->release(RemoteAddr(kCodeAt)); });
  }
  /// The wait status of the released process, and of its namespace's init.
  std::vector<int> ends() {
    std::vector<int> all;
    for (const pid_t pid : shell_->children()) {
      int status = -1;
      EXPECT_EQ(::waitpid(pid, &status, 0), pid);
      all.push_back(status);
    }
    return all;
  }

  std::unique_ptr<ShellThread> thread_;
  std::unique_ptr<Shell> shell_;
};

Report read_report(const Fd& from) {
  Report report;
  EXPECT_EQ(::read(from.get(), &report, sizeof report), static_cast<ssize_t>(sizeof report));
  return report;
}
void expect_report(const Report& got, uint64_t value) {
  EXPECT_EQ(got.r12, value);
  EXPECT_EQ(got.r15, value + 1);
  EXPECT_EQ(got.rbp, value + 2);
  EXPECT_EQ(got.xmm[0], value + 3);
  EXPECT_EQ(got.xmm[1], value + 4);
}

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
  ASSERT_EQ(text(thread_->call([&] { return shell_->create_thread(kPid + 7); })), "");
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
  // It waits in read(9) after the release.
  ASSERT_EQ(text(set(kPid,
                     [&](Registers& r) {
                       r.general.rip = address_of(test_after_read);
                       r.general.rax = static_cast<uint64_t>(-512);
                       r.general.orig_rax = SYS_read;
                       r.general.rdi = 9;
                       r.general.rsi = kDataAt + 128;
                       r.general.rdx = 1;
                       r.general.r12 = 5;
                       r.general.r13 = kDataAt;
                     })),
            "");
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
  ASSERT_EQ(::write(hold.write.get(), "x", 1), 1);
  int64_t result = 0;
  ASSERT_EQ(::read(reports.read.get(), &result, sizeof result), 8);
  EXPECT_EQ(result, 1);
  EXPECT_THAT(ends(), testing::ElementsAre(3 << 8));
}

}  // namespace
}  // namespace godwit::tracee

namespace {

/// The tests, as pid 1 with a /proc of its own.
int run_inside(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("proc", "/proc", "proc", 0, nullptr) != 0) {
    fmt::print("skipped: cannot mount /proc: {}\n", strerror(errno));
    return 77;
  }
  testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace

int main(int argc, char** argv) {
  if (::unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) {
    fmt::print("skipped: no pid namespace of its own: {}\n", strerror(errno));
    return 77;
  }
  const pid_t inside = ::fork();
  if (inside == 0) {
    const int code = run_inside(argc, argv);
    std::fflush(nullptr);
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(inside, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
