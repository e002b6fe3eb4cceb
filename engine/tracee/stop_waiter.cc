#include "engine/tracee/stop_waiter.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <utility>

#include "engine/base/files.h"
#include "engine/tracee/process.h"

namespace godwit::tracee {
namespace {

constexpr long kTickNanos = 10'000'000;
constexpr int kTicksOfUninterruptible = 2;

int tick_signal() {
  return SIGRTMIN + 5;
}

void ignore_tick(int) {}

/// Without SA_RESTART, so that waitpid() returns EINTR.
void install_handler() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_handler = ignore_tick;
    return ::sigaction(tick_signal(), &action, nullptr) == 0;
  }();
  CHECK(installed);
}

sigset_t tick_set() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, tick_signal());
  return set;
}

/// The state letter of a thread; 'X' when it is no more.
char state_of(pid_t pid, pid_t tid) {
  const auto text = read_file(fmt::format("/proc/{}/task/{}/stat", pid, tid));
  if (!text.ok()) return 'X';
  const auto stat = parse_stat(text.value());
  return stat.ok() ? stat.value().state : '?';
}

Error gone(pid_t tid) {
  return fail_errno("wait for a stop", fmt::format("thread {}", tid), ESRCH);
}

}  // namespace

int Stop::signal() const {
  return WSTOPSIG(status);
}
bool Stop::is_event_stop() const {
  return status >> 16 == PTRACE_EVENT_STOP;
}
bool Stop::is_group_stop() const {
  return is_event_stop() && signal() != SIGTRAP;
}
bool Stop::is_syscall_stop() const {
  return status >> 16 == 0 && signal() == (SIGTRAP | 0x80);
}
bool Stop::is_signal_delivery() const {
  return status >> 16 == 0 && signal() < 0x80;
}

Result<StopWaiter> StopWaiter::create() {
  install_handler();
  StopWaiter waiter;
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = tick_signal();
  event._sigev_un._tid = ::gettid();
  if (::timer_create(CLOCK_MONOTONIC, &event, &waiter.timer_) != 0)
    return fail_errno("timer_create", "the tracer's thread");
  waiter.armed_ = true;
  const sigset_t set = tick_set();
  sigset_t old;
  ::pthread_sigmask(SIG_UNBLOCK, &set, &old);
  waiter.was_blocked_ = sigismember(&old, tick_signal()) == 1;
  // Periodic: a tick that comes just before waitpid() blocks is made good by the next.
  const itimerspec every{{0, kTickNanos}, {0, kTickNanos}};
  if (::timer_settime(waiter.timer_, 0, &every, nullptr) != 0)
    return fail_errno("timer_settime", "the tracer's thread");
  return waiter;
}

StopWaiter::StopWaiter(StopWaiter&& other) noexcept
    : timer_(other.timer_), armed_(std::exchange(other.armed_, false)), was_blocked_(other.was_blocked_) {}

StopWaiter::~StopWaiter() {
  if (!armed_) return;
  ::timer_delete(timer_);
  const sigset_t set = tick_set();
  if (was_blocked_) ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Result<Stop> StopWaiter::wait(pid_t pid, pid_t tid, Nanos limit) {
  return wait_for(pid, tid, limit, false);
}

Result<Stop> StopWaiter::wait_patiently(pid_t pid, pid_t tid, Nanos limit) {
  return wait_for(pid, tid, limit, true);
}

Result<Stop> StopWaiter::wait_for(pid_t pid, pid_t tid, Nanos limit, bool patient) {
  const Nanos start = monotonic_now();
  int uninterruptible = 0;
  for (;;) {
    int status = 0;
    const pid_t got = ::waitpid(tid, &status, __WALL);
    if (got == tid && WIFSTOPPED(status)) return Stop{status};
    if (got == tid || (got < 0 && errno != EINTR)) return gone(tid);
    const char state = state_of(pid, tid);
    if (state == 'X' || state == 'Z')
      return gone(tid);  // a leader that ended before its threads is never reported
    uninterruptible = state == 'D' && !patient ? uninterruptible + 1 : 0;
    if (uninterruptible >= kTicksOfUninterruptible)
      return fail(ErrorKind::kRetry, "wait for a stop", fmt::format("thread {} of pid {}", tid, pid),
                  "it is in an uninterruptible wait (vfork, or a device that does not answer)");
    if (monotonic_now() - start > limit)
      return fail(ErrorKind::kTimeout, "wait for a stop", fmt::format("thread {} of pid {}", tid, pid),
                  fmt::format("it did not stop; its state is {}", state));
  }
}

}  // namespace godwit::tracee
