// Interrupted calls of a frozen process, read back from the kernel; at home and from inside a nested pid
// namespace.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <thread>

#include "ebpf/restart_reader.h"
#include "engine/base/clock.h"
#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/units.h"

namespace godwit::ebpf {
namespace {

constexpr long kRestartBlock = -516;  // ERESTART_RESTARTBLOCK, linux/errno.h
constexpr std::chrono::seconds kLong(1000);

enum Sleeper { kNanosleep, kBootSleep, kFutex, kPoll, kPollForEver, kRead, kEpoll, kEpollForEver, kSleepers };
constexpr std::array<long, kSleepers> kCalls{
    SYS_nanosleep, SYS_clock_nanosleep, SYS_futex,     SYS_poll, SYS_poll,
    SYS_read,      SYS_epoll_wait,      SYS_epoll_wait};

struct Shared {
  std::array<std::atomic<pid_t>, kSleepers> tids;
  std::atomic<uint64_t> rmtp, futex, fds;
};

/// One thread of the child: announces itself, then sleeps in its call for good.
[[noreturn]] void sleep_in(Sleeper which, Shared& shared, int never) {
  timespec longish{kLong.count(), 0}, rest{};
  uint32_t word = 42;
  pollfd fds{never, POLLIN, 0};
  epoll_event event{};
  const int epoll = ::epoll_create1(0);
  if (which == kNanosleep) shared.rmtp = reinterpret_cast<uint64_t>(&rest);
  if (which == kFutex) shared.futex = reinterpret_cast<uint64_t>(&word);
  if (which == kPoll) shared.fds = reinterpret_cast<uint64_t>(&fds);
  shared.tids[which] = static_cast<pid_t>(::syscall(SYS_gettid));
  shared.tids[which].notify_one();
  for (char byte = 0;;) {
    switch (which) {
      case kNanosleep:
        ::syscall(SYS_nanosleep, &longish, &rest);
        break;
      case kBootSleep:
        ::syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &longish, nullptr);
        break;
      case kFutex:
        ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 42, &longish, nullptr, 0);
        break;
      case kPoll:
        ::syscall(SYS_poll, &fds, 1, 1000 * kLong.count());
        break;
      case kPollForEver:
        ::syscall(SYS_poll, &fds, 1, -1);
        break;
      case kEpoll:
        ::epoll_wait(epoll, &event, 1, 1000 * kLong.count());
        break;
      case kEpollForEver:
        ::epoll_wait(epoll, &event, 1, -1);
        break;
      default:
        (void)!::read(never, &byte, 1);
        break;
    }
  }
}

pid_t start_sleepers(Shared& shared) {
  int ready[2];
  if (::pipe(ready) != 0) return -1;
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int never[2];
    if (::pipe(never) != 0) ::_exit(1);
    for (int i = 1; i < kSleepers; i++) {
      std::thread([&shared, i, read_end = never[0]] { sleep_in(Sleeper(i), shared, read_end); }).detach();
    }
    for (int i = 1; i < kSleepers; i++) shared.tids[static_cast<size_t>(i)].wait(0);
    if (::write(ready[1], "r", 1) != 1) ::_exit(1);
    sleep_in(kNanosleep, shared, never[0]);
  }
  shared.tids[kNanosleep] = child;
  char byte = 0;
  if (::read(ready[0], &byte, 1) != 1) return -1;
  for (const int fd : ready) ::close(fd);
  return child;
}

bool stopped(pid_t tid, int& status) {
  return ::waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status);
}

/// Asleep, as /proc shows it.
bool await_sleep(pid_t tid) {
  for (;;) {
    auto status = read_file(fmt::format("/proc/{}/status", tid));
    if (!status.ok()) return false;
    if (field(*status, "State:").value_or("?").starts_with('S')) return true;
    ::sched_yield();
  }
}

/// Freezes `tid` inside `call`: runs it to the entry of that call (or of its restart), then interrupts it
/// once it sleeps in there.
bool freeze_inside(pid_t tid, long call, long* result) {
  int status = 0;
  user_regs_struct regs{};
  if (::ptrace(PTRACE_SEIZE, tid, nullptr, PTRACE_O_TRACESYSGOOD) != 0) return false;
  if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0 || !stopped(tid, status)) return false;
  do {
    if (::ptrace(PTRACE_SYSCALL, tid, nullptr, nullptr) != 0 || !stopped(tid, status)) return false;
    if (::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return false;
  } while (!(WSTOPSIG(status) == (SIGTRAP | 0x80) && static_cast<long>(regs.rax) == -ENOSYS &&
             (static_cast<long>(regs.orig_rax) == call || regs.orig_rax == SYS_restart_syscall)));
  if (::ptrace(PTRACE_CONT, tid, nullptr, nullptr) != 0 || !await_sleep(tid)) return false;
  if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0 || !stopped(tid, status)) return false;
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &regs) != 0) return false;
  *result = static_cast<long>(regs.rax);
  return true;
}

bool plausible(Nanos end, clockid_t clock) {
  const Nanos left = end - read_clock(clock);
  return left > Nanos(0) && left <= kLong;
}

#define EXPECT_THAT_ELSE_RETURN(condition) \
  if (!(condition)) return std::string("not so: " #condition)

/// Whoever slept with a timeout gave up a timer, and when; whoever did not, none.
std::string check_timers(const std::vector<RestartBlock>& blocks, Nanos frozen_at) {
  for (size_t i = 0; i < kSleepers; i++) {
    const bool timed = i != kPollForEver && i != kRead && i != kEpollForEver;
    if (blocks[i].timer.has_value() != timed) return fmt::format("sleeper {}: timer {}", i, !timed);
    if (!timed) continue;
    EXPECT_THAT_ELSE_RETURN(blocks[i].timer->clock == (i == kBootSleep ? CLOCK_BOOTTIME : CLOCK_MONOTONIC));
    EXPECT_THAT_ELSE_RETURN(plausible(blocks[i].timer->expires, blocks[i].timer->clock));
    EXPECT_THAT_ELSE_RETURN(blocks[i].timer->at >= frozen_at && blocks[i].timer->at <= monotonic_now());
  }
  return {};
}

std::string check_blocks(const std::vector<RestartBlock>& blocks, const Shared& shared) {
  const auto is = [](const RestartBlock& block, RestartKind kind) {
    return block.kind == kind || block.kind == RestartKind::kUnnamed;
  };
  EXPECT_THAT_ELSE_RETURN(blocks.size() == kSleepers);
  for (size_t i = 0; i < kSleepers; i++) EXPECT_THAT_ELSE_RETURN(blocks[i].tid == shared.tids[i]);
  const auto& sleep = blocks[kNanosleep];
  EXPECT_THAT_ELSE_RETURN(is(sleep, RestartKind::kNanosleep));
  EXPECT_THAT_ELSE_RETURN(sleep.nanosleep.clock == CLOCK_MONOTONIC && sleep.nanosleep.type == 1);
  EXPECT_THAT_ELSE_RETURN(sleep.nanosleep.rmtp.value() == shared.rmtp);
  EXPECT_THAT_ELSE_RETURN(plausible(sleep.nanosleep.expires, CLOCK_MONOTONIC));
  const auto& boot = blocks[kBootSleep];
  EXPECT_THAT_ELSE_RETURN(is(boot, RestartKind::kNanosleep));
  EXPECT_THAT_ELSE_RETURN(boot.nanosleep.clock == CLOCK_BOOTTIME && boot.nanosleep.type == 0);
  EXPECT_THAT_ELSE_RETURN(plausible(boot.nanosleep.expires, CLOCK_BOOTTIME));
  const auto& futex = blocks[kFutex];
  EXPECT_THAT_ELSE_RETURN(is(futex, RestartKind::kFutexWait));
  EXPECT_THAT_ELSE_RETURN(futex.futex.uaddr.value() == shared.futex && futex.futex.value == 42);
  EXPECT_THAT_ELSE_RETURN(futex.futex.bitset == FUTEX_BITSET_MATCH_ANY &&
                          plausible(futex.futex.time, CLOCK_MONOTONIC));
  const auto& poll = blocks[kPoll];
  EXPECT_THAT_ELSE_RETURN(is(poll, RestartKind::kPoll));
  EXPECT_THAT_ELSE_RETURN(poll.poll.ufds.value() == shared.fds && poll.poll.count == 1);
  EXPECT_THAT_ELSE_RETURN(poll.poll.end && plausible(*poll.poll.end, CLOCK_MONOTONIC));
  EXPECT_THAT_ELSE_RETURN(is(blocks[kPollForEver], RestartKind::kPoll) && !blocks[kPollForEver].poll.end);
  return {};
}

/// Empty when all is right. "skip: ..." when this machine permits no BPF.
std::string scenario() {
  auto* shared = static_cast<Shared*>(
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t child = start_sleepers(*shared);
  if (child < 0) return "no child";
  struct Reaper {
    pid_t pid;
    Shared& threads;
    ~Reaper() {
      ::kill(pid, SIGKILL);
      // A traced thread is reaped before its leader, or waiting for the leader would never end.
      for (size_t i = kSleepers; i-- > 0;) ::waitpid(threads.tids[i], nullptr, __WALL);
    }
  } const reaper{child, *shared};
  const auto start = monotonic_now();
  auto reader = RestartReader::create(child);
  fmt::print(stderr, "loading took {} us\n", to_micros(monotonic_now() - start));
  if (!reader.ok()) return "skip: " + reader.error().message();
  std::vector<pid_t> tids;
  const auto frozen_at = monotonic_now();
  for (int i = 0; i < kSleepers; i++) {
    long result = 0;
    tids.push_back(shared->tids[static_cast<size_t>(i)]);
    if (!freeze_inside(tids.back(), kCalls[static_cast<size_t>(i)], &result)) return "cannot freeze";
    if (i < kRead && result != kRestartBlock) return fmt::format("sleeper {} returned {}", i, result);
  }
  const auto before = monotonic_now();
  auto blocks = reader->read(tids);
  fmt::print(stderr, "reading {} threads took {} us\n", tids.size(), to_micros(monotonic_now() - before));
  if (!blocks.ok()) return blocks.error().message();
  const pid_t stranger = 4194000;
  const auto gone = reader->read(std::span(&stranger, 1));
  if (gone.ok() || gone.error().kind != ErrorKind::kTargetGone) return "a stranger was found";
  const std::string wrong = check_timers(*blocks, frozen_at);
  return wrong.empty() ? check_blocks(*blocks, *shared) : wrong;
}

TEST(RestartReader, TellsWhatIsLeftOfEachInterruptedCall) {
  const std::string wrong = scenario();
  if (wrong.starts_with("skip: ")) GTEST_SKIP() << wrong;
  EXPECT_EQ(wrong, "");
}

TEST(RestartReader, CountsInThePidNamespaceOfItsReader) {
  int answer[2];
  ASSERT_EQ(::pipe(answer), 0);
  // The namespace is entered by a child's child, which is pid 1 there and knows only its numbers.
  const pid_t outside = ::fork();
  if (outside == 0) {
    if (::unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) ::_exit(2);
    const pid_t inside = ::fork();
    if (inside == 0) {
      const bool own_proc = ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                            ::mount("proc", "/proc", "proc", 0, nullptr) == 0;
      const std::string wrong =
          ::getpid() == 1 && own_proc ? scenario() : "not pid 1 with a /proc of its own";
      (void)!::write(answer[1], wrong.data(), wrong.size());
      ::_exit(0);
    }
    ::waitpid(inside, nullptr, 0);
    ::_exit(0);
  }
  ::close(answer[1]);
  int status = 0;
  ASSERT_EQ(::waitpid(outside, &status, 0), outside);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 2) GTEST_SKIP() << "no privilege to make a pid namespace";
  std::string wrong(4096, '\0');
  wrong.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(answer[0], wrong.data(), wrong.size()))));
  ::close(answer[0]);
  if (wrong.starts_with("skip: ")) GTEST_SKIP() << wrong;
  EXPECT_EQ(wrong, "");
}

TEST(RestartReader, SaysWhyWithoutPrivilege) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const auto reader = RestartReader::create(::getpid());
    const bool told = !reader.ok() && reader.error().kind == ErrorKind::kUnsupported &&
                      reader.error().message().find("CAP_BPF") != std::string::npos;
    if (!reader.ok()) fmt::print(stderr, "{}\n", reader.error().message());
    ::_exit(told ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "not root: no privilege to give up";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace godwit::ebpf
