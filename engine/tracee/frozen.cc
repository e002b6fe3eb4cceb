// Freezing: seize all (they run on), interrupt all, wait for all, and look again whether one was born
// meanwhile. A thread that reports a signal first (it was about to be delivered) takes it: its handler's
// frame is pushed, or it stops or dies of it, and then it meets the interrupt before it runs an instruction.
// So no signal is lost or late.
#include "engine/tracee/frozen.h"

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <thread>
#include <utility>

#include "engine/base/files.h"
#include "engine/tracee/fixups.h"
#include "engine/tracee/stop_waiter.h"

namespace godwit::tracee {
namespace {

constexpr Nanos kPatience =
    std::chrono::seconds(10);  ///< for a thread that could not stop, the others running

Error ptrace_error(const char* request, pid_t tid) {
  return fail_errno(fmt::format("ptrace({})", request), fmt::format("thread {}", tid));
}

/// Continues a stopped thread, delivering `signal` if not 0.
Status resume(pid_t tid, int signal) {
  if (::ptrace(PTRACE_CONT, tid, nullptr, signal) != 0) return ptrace_error("PTRACE_CONT", tid);
  return {};
}

Status interrupt(pid_t tid) {
  if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) != 0) return ptrace_error("PTRACE_INTERRUPT", tid);
  return {};
}

/// A thread killed under a tracer stays a zombie until the tracer has looked, and its parent waits. It may
/// have some way to go until then. KERNEL: a leader's end is not told before its threads are reaped, by their
/// tracer. The end of a child of our own is not ours to take: whoever made it waits for it, and that is a
/// look as well.
void reap(const Process& process, pid_t tid) {
  const auto stat = process.stat();
  const bool own_child = stat.ok() && stat.value().ppid == ::getpid();
  const auto ended = [&](pid_t any) {
    if (own_child && any == process.pid()) return true;
    siginfo_t info{};
    const int got = ::waitid(P_PID, static_cast<id_t>(any), &info, WEXITED | WNOHANG | __WALL);
    return got != 0 || info.si_pid == any;  // reaped, now or before; or not ours
  };
  const Nanos end = monotonic_now() + kPatience;
  while (!ended(tid) && monotonic_now() < end) {
    const auto others = process.threads();
    for (const pid_t other : others.ok() ? others.value() : std::vector<pid_t>()) (void)ended(other);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

Status detach(const Process& process, pid_t tid) {
  if (::ptrace(PTRACE_DETACH, tid, nullptr, nullptr) == 0) return {};
  const Error error = ptrace_error("PTRACE_DETACH", tid);
  reap(process, tid);
  return error;
}

std::string name_of(pid_t pid) {
  const auto comm = read_file(fmt::format("/proc/{}/comm", pid));
  return comm.ok() ? std::string(trim(comm.value())) : "?";
}

/// Why PTRACE_SEIZE said EPERM: nothing means "that thread has ended, go on without it".
Status explain_denied(const Process& process, pid_t tid) {
  const auto status = process.status(tid);
  if (!status.ok()) return {};
  const std::string who = fmt::format("thread {} of pid {}", tid, process.pid());
  const auto state = field(status.value(), "State:").value_or("?");
  if (state.starts_with('Z') || state.starts_with('X')) {
    if (tid != process.pid()) return {};
    const auto threads = process.threads();
    if (!threads.ok() || threads.value().size() <= 1) return fail_errno("freeze", who, ESRCH);
    return fail(ErrorKind::kRefused, "freeze", who, "its main thread has ended while others run");
  }
  const auto tracer = parse_number(field(status.value(), "TracerPid:").value_or("0")).value_or(0);
  Error error = fail_errno("ptrace(PTRACE_SEIZE)", who, EPERM);
  error.remedy = tracer == 0 ? std::string("run godwit as root, or as the owner with CAP_SYS_PTRACE")
                             : fmt::format("pid {} ({}) traces it: detach that first", tracer,
                                           name_of(static_cast<pid_t>(tracer)));
  return error;
}

/// Waits for the stop that an interrupt asked for. Signals that come before it are delivered.
/// KERNEL: any stop, a signal's too, takes a pending interrupt away (ptrace_stop() clears JOBCTL_TRAP_STOP),
/// and for a POSIX timer's signal the lock under which the two are ordered is dropped in between. So it is
/// asked for again before the thread goes on; it then comes before the next signal.
Result<Stop> wait_for_trap(StopWaiter& waiter, const Process& process, pid_t tid, Nanos limit) {
  const Nanos end = monotonic_now() + limit;
  for (;;) {
    const Stop stop = TRY(waiter.wait(process.pid(), tid, end - monotonic_now()));
    if (stop.is_event_stop()) return stop;
    TRY(interrupt(tid));
    TRY(resume(tid, stop.is_signal_delivery() ? stop.signal() : 0));
  }
}

/// A freeze under way. Unless commit() is called, everything seized is let go.
class Freezer {
 public:
  Freezer(const Process& process, StopWaiter& waiter) : process_(process), waiter_(waiter) {}
  Freezer(const Freezer&) = delete;
  Freezer& operator=(const Freezer&) = delete;
  ~Freezer() { let_go(); }

  Status freeze() {
    for (;;) {
      const size_t known = threads_.size();
      TRY(seize_new());
      if (threads_.size() == known) break;
      TRY(stop_from(known));
    }
    if (threads_.empty()) return fail_errno("freeze", fmt::format("pid {}", process_.pid()), ESRCH);
    return {};
  }

  Status freeze_one(pid_t tid) {
    TRY(seize(tid));
    if (!threads_.empty()) TRY(stop_from(0));
    if (threads_.empty()) return fail_errno("freeze", fmt::format("thread {}", tid), ESRCH);
    return {};
  }

  std::vector<FrozenThread> commit() { return std::exchange(threads_, {}); }

 private:
  Status seize_new() {
    for (const pid_t tid : TRY(process_.threads())) {
      const auto same = [tid](const FrozenThread& thread) { return thread.tid == tid; };
      if (std::any_of(threads_.begin(), threads_.end(), same)) continue;
      TRY(seize(tid));
    }
    return {};
  }

  /// A thread that has ended meanwhile is passed over.
  Status seize(pid_t tid) {
    if (::ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) == 0) {
      threads_.push_back({.tid = tid});
    } else if (errno == EPERM) {
      TRY(explain_denied(process_, tid));
    } else if (errno != ESRCH) {
      return ptrace_error("PTRACE_SEIZE", tid);
    }
    return {};
  }

  Status stop_from(size_t first) {
    for (size_t i = first; i < threads_.size(); ++i) TRY(interrupt(threads_[i].tid));
    stopped_ = first;
    for (; stopped_ < threads_.size(); ++stopped_) {
      const auto stop = wait_for_trap(waiter_, process_, threads_[stopped_].tid, Frozen::kLimit);
      if (stop.ok()) {
        threads_[stopped_].group_stopped = stop.value().is_group_stop();
        // ORDER: as soon as the thread stands, for until then the death of this engine would show in it.
        TRY(read_and_fix(process_, threads_[stopped_]));
      } else if (stop.error().kind == ErrorKind::kTargetGone && threads_[stopped_].tid != process_.pid()) {
        threads_.erase(threads_.begin() +
                       static_cast<ptrdiff_t>(stopped_--));  // this thread ended, others live
      } else {
        return stop.error();
      }
    }
    return {};
  }

  /// ORDER: those that stand first, so that the process runs while we wait for one that could not stop.
  void let_go() {
    for (size_t i = 0; i < std::min(stopped_, threads_.size()); ++i) {
      (void)unfix_if_signalled(process_, threads_[i]);
      (void)detach(process_, threads_[i].tid);
    }
    // Seized but not known to stand: only a stopped thread can be let go. The one that failed us comes last.
    std::vector<pid_t> running;
    for (size_t i = stopped_; i < threads_.size(); ++i) running.push_back(threads_[i].tid);
    if (running.size() > 1) std::rotate(running.begin(), running.begin() + 1, running.end());
    for (const pid_t tid : running) stop_and_let_go(tid);
    threads_.clear();
  }

  /// What stays seized after all patience is freed when this thread of the engine ends.
  void stop_and_let_go(pid_t tid) {
    if (::ptrace(PTRACE_DETACH, tid, nullptr, nullptr) == 0) return;  // it stood already
    (void)interrupt(tid);
    const Nanos end = monotonic_now() + kPatience;
    for (;;) {
      const auto stop = wait_for_trap(waiter_, process_, tid, kPatience);
      if (stop.ok()) (void)detach(process_, tid);
      if (stop.ok() || stop.error().kind != ErrorKind::kRetry || monotonic_now() > end) return;
    }
  }

  const Process& process_;
  StopWaiter& waiter_;
  std::vector<FrozenThread> threads_;
  size_t stopped_ = 0;  ///< threads_[0, stopped_) stand
};

}  // namespace

Result<Frozen> Frozen::freeze(const Process& process) {
  StopWaiter waiter = TRY(StopWaiter::create());
  Freezer freezer(process, waiter);
  TRY(freezer.freeze());
  Frozen frozen;
  frozen.process_ = &process;
  frozen.threads_ = freezer.commit();
  if (frozen.find(process.pid()) == nullptr)
    return fail_errno("freeze", fmt::format("pid {}", process.pid()), ESRCH);
  return frozen;
}

Result<Frozen> Frozen::freeze_thread(const Process& process, pid_t tid) {
  StopWaiter waiter = TRY(StopWaiter::create());
  Freezer freezer(process, waiter);
  TRY(freezer.freeze_one(tid));
  Frozen frozen;
  frozen.process_ = &process;
  frozen.threads_ = freezer.commit();
  return frozen;
}

Frozen::Frozen(Frozen&& other) noexcept
    : process_(other.process_),
      threads_(std::exchange(other.threads_, {})),
      stop_queued_(std::exchange(other.stop_queued_, false)) {}

Frozen::~Frozen() {
  (void)finish();
}

const FrozenThread& Frozen::leader() const {
  const FrozenThread* thread = find(process_->pid());
  CHECK(thread != nullptr);
  return *thread;
}

const FrozenThread* Frozen::find(pid_t tid) const {
  const auto at =
      std::find_if(threads_.begin(), threads_.end(), [tid](const auto& t) { return t.tid == tid; });
  return at == threads_.end() ? nullptr : &*at;
}

FrozenThread* Frozen::find_mutable(pid_t tid) {
  return const_cast<FrozenThread*>(std::as_const(*this).find(tid));
}

Status Frozen::finish() {
  Status first;
  for (FrozenThread& thread : threads_) {
    Status status = unfix_if_signalled(*process_, thread);
    if (Status detached = detach(*process_, thread.tid); !detached.ok()) status = std::move(detached);
    if (first.ok() && !status.ok()) first = std::move(status);
  }
  threads_.clear();
  return first;
}

Status Frozen::settle(pid_t tid, int signal) {
  FrozenThread* thread = find_mutable(tid);
  if (thread == nullptr) return fail(ErrorKind::kBug, "settle a thread", fmt::format("thread {}", tid));
  StopWaiter waiter = TRY(StopWaiter::create());
  TRY(interrupt(tid));
  TRY(resume(tid, signal));
  TRY(wait_for_trap(waiter, *process_, tid, kLimit));
  return read_and_fix(*process_, *thread);
}

Status Frozen::set_original(pid_t tid, const user_regs_struct& general) {
  FrozenThread* thread = find_mutable(tid);
  if (thread == nullptr)
    return fail(ErrorKind::kBug, "set the registers of a thread", fmt::format("thread {}", tid));
  TRY(write_general(tid, general));
  thread->original = general;
  return {};
}

Status Frozen::make_stop_permanent() {
  // In a process that was stopped before, the stop is permanent already.
  if (stop_queued_ || leader().group_stopped) return {};
  TRY(process_->pidfd().send_signal(SIGSTOP));
  stop_queued_ = true;
  return {};
}

Status Frozen::undo_stop() {
  if (stop_queued_) {
    TRY(swallow(*find_mutable(process_->pid()), SIGSTOP));
    stop_queued_ = false;
    return {};
  }
  if (!leader().group_stopped) return {};
  // KERNEL: only SIGCONT ends a group stop. It does so at once, when sent; what is left is a pending signal
  // that a handler would see, and a tracer can take it before that.
  TRY(process_->pidfd().send_signal(SIGCONT));
  constexpr uint64_t bit = signal_bit(SIGCONT);
  const auto open = [](const FrozenThread& thread) { return (thread.signal_mask & bit) == 0; };
  auto taker = std::find_if(threads_.begin(), threads_.end(), open);
  const bool all_block = taker == threads_.end();  // then it would stay pending, for a sigwait() to find
  if (all_block) {
    taker = threads_.begin();
    TRY(set_signal_mask(taker->tid, taker->signal_mask & ~bit));
  }
  TRY(swallow(*taker, SIGCONT));
  if (all_block) {
    taker->signal_mask |= bit;
    TRY(set_signal_mask(taker->tid, taker->signal_mask));
  }
  for (FrozenThread& thread : threads_) thread.group_stopped = false;
  return {};
}

/// Lets `thread` go on inside the kernel until it reports the pending `signal`, and takes that away.
/// KERNEL: it cannot reach user mode before, for the kernel hands out all pending signals first. Those that
/// come before `signal` are delivered as they would be at the thaw.
Status Frozen::swallow(FrozenThread& thread, int signal) {
  StopWaiter waiter = TRY(StopWaiter::create());
  TRY(unfix_if_signalled(*process_, thread));
  int deliver = 0;
  for (;;) {
    TRY(resume(thread.tid, deliver));
    const Stop stop = TRY(waiter.wait(process_->pid(), thread.tid, kLimit));
    if (stop.is_signal_delivery() && stop.signal() == signal) break;
    deliver = stop.is_signal_delivery() ? stop.signal() : 0;
  }
  // A tracer's death now would deliver it after all: go on, without it, to a stop that holds no signal.
  return settle(thread.tid);
}

Status Frozen::kill() {
  TRY(process_->pidfd().send_signal(SIGKILL));
  // ORDER: the leader last; its death is reported when all others have been reaped.
  const pid_t leader_tid = process_->pid();
  std::stable_partition(threads_.begin(), threads_.end(), [=](const auto& t) { return t.tid != leader_tid; });
  for (const FrozenThread& thread : threads_) {
    int status = 0;
    pid_t got = 0;
    do {
      got = ::waitpid(thread.tid, &status, __WALL);
    } while ((got < 0 && errno == EINTR) || (got == thread.tid && WIFSTOPPED(status)));
  }
  threads_.clear();
  return {};
}

}  // namespace godwit::tracee
