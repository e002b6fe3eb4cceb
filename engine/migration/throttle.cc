#include "engine/migration/throttle.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>

#include "engine/base/log.h"
#include "engine/base/realtime.h"

namespace godwit::migration {

Throttle::Throttle(const tracee::Process& process, InterruptedCalls& calls,
                   std::function<ThrottleLimits()> limits)
    : process_(process), calls_(calls), limits_(std::move(limits)) {
  // ORDER: signals are for the migrating thread; this one is born with all of them blocked.
  sigset_t all, old;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &old);
  thread_ = std::thread([this] { run(); });
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);
  ::pthread_setname_np(thread_.native_handle(), "godwit-throttle");
}

Throttle::~Throttle() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Throttle::set(ThrottleLevel level) {
  {
    const std::lock_guard lock(mutex_);
    level_ = level;
  }
  changed_.notify_all();
}

Throttle::Hold::Hold(Throttle* throttle) : throttle_(throttle) {
  if (throttle_ == nullptr) return;
  std::unique_lock lock(throttle_->mutex_);
  ++throttle_->holds_;
  throttle_->changed_.notify_all();
  throttle_->changed_.wait(lock, [this] { return !throttle_->busy_; });
}

Throttle::Hold::~Hold() {
  if (throttle_ == nullptr) return;
  {
    const std::lock_guard lock(throttle_->mutex_);
    --throttle_->holds_;
  }
  throttle_->changed_.notify_all();
}

// ---- the throttle's thread
// -------------------------------------------------------------------------------------------

void Throttle::run() {
  // What it cannot begin in time it cannot end in time either.
  const RealtimeBoost boost;
  std::unique_lock lock(mutex_);
  const auto wanted = [this] { return holds_ == 0 && !level_.open() && !stop_; };
  for (;;) {
    // What stands from the last period may stand on only if there is a next.
    if (busy_ && !wanted()) {
      lock.unlock();
      let_go_all();
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return stop_ || wanted(); });
    if (stop_ && !busy_) return;
    const ThrottleLevel level = level_;
    busy_ = true;
    lock.unlock();
    const ThrottleLimits limits = limits_();
    turn(within(level, limits), limits);
    lock.lock();
  }
}

bool Throttle::wait_until(Nanos time) {
  std::unique_lock lock(mutex_);
  const auto end = std::chrono::steady_clock::time_point(time);
  return !changed_.wait_until(lock, end, [this] { return holds_ > 0 || stop_; });
}

/// One period.
void Throttle::turn(ThrottleLevel level, const ThrottleLimits& limits) {
  const Nanos end = monotonic_now() + kPeriod;
  if (!level.writers) writers_.clear();
  if (level.cpu_percent > 0) {
    // A thread is held once: by its own stand, or by that of all.
    let_go_all();
    stand_all(kPeriod * level.cpu_percent / 100);
  }
  if (level.writers)
    watch_writers(end, limits.dirty_limit);
  else
    wait_until(end);
}

void Throttle::stand_all(Nanos time) {
  const Nanos begin = monotonic_now();
  auto frozen = tracee::Frozen::freeze(process_);
  if (!frozen.ok()) {
    log_debug("throttle: {}", frozen.error().message());
    return;  // in the next period
  }
  if (const Status looked = calls_.look(*frozen, begin); !looked.ok())
    log_debug("throttle: {}", looked.error().message());
  wait_until(begin + time);
  (void)frozen->finish();
  for (auto& [tid, writer] : writers_) writer.stood += monotonic_now() - begin;
}

/// Looks at each thread when it is due, and lets those stand that are in debt.
void Throttle::watch_writers(Nanos until, uint64_t limit) {
  list_writers(monotonic_now());
  for (;;) {
    const Nanos now = monotonic_now();
    Nanos next = until;
    for (auto at = writers_.begin(); at != writers_.end();) {
      const bool lives = at->second.due > now || look_at(at->first, at->second, now, limit);
      if (lives) next = std::min(next, at->second.due);
      at = lives ? std::next(at) : writers_.erase(at);
    }
    if (now >= until || !wait_until(next)) return;
  }
}

/// Once in a period: threads come and go.
void Throttle::list_writers(Nanos now) {
  const auto tids = process_.threads();
  if (!tids.ok()) return;
  for (const pid_t tid : tids.value()) {
    if (writers_.contains(tid)) continue;
    const auto stat = process_.stat(tid);
    if (stat.ok())
      writers_.emplace(
          tid, Writer{WriterBudget(stat.value().faults, now), now + WriterBudget::kFirstRun, {}, {}, {}});
  }
}

/// False when it has ended.
bool Throttle::look_at(pid_t tid, Writer& writer, Nanos now, uint64_t limit) {
  const auto stat = process_.stat(tid);
  if (!stat.ok()) return false;
  if (writer.stand) {
    writer.stood += now - writer.stand_began;
    writer.stand_began = now;
  }
  const WriterBudget::Turn turn =
      writer.budget.look(stat.value().faults, now, std::exchange(writer.stood, Nanos{}), limit);
  if (turn.stand == Nanos{}) {
    let_go(writer);
    writer.stood = Nanos{};
    writer.due = now + turn.look;
    return true;
  }
  writer.due = now + turn.stand;
  if (writer.stand) return true;
  auto stand = tracee::Frozen::freeze_thread(process_, tid);
  if (!stand.ok()) {
    writer.due = now + turn.look;
    return stand.error().kind != ErrorKind::kTargetGone;
  }
  if (const Status looked = calls_.look(*stand, now); !looked.ok())
    log_debug("throttle: {}", looked.error().message());
  writer.stand.emplace(stand.take());
  writer.stand_began = monotonic_now();
  return true;
}

void Throttle::let_go(Writer& writer) {
  if (!writer.stand) return;
  (void)writer.stand->finish();
  writer.stand.reset();
  writer.stood += monotonic_now() - writer.stand_began;
}

/// Debts are kept: who is let go before its time is looked at again at once.
void Throttle::let_go_all() {
  for (auto& [tid, writer] : writers_) {
    if (writer.stand) writer.due = {};
    let_go(writer);
  }
}

}  // namespace godwit::migration
