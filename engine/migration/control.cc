#include "engine/migration/control.h"

#include <fmt/format.h>

#include <algorithm>

namespace godwit::migration {
namespace {

/// How long a cancelled migration may take to end in order, telling the peer, before its link is cut.
constexpr Nanos kOrderly = std::chrono::milliseconds(200);
/// Paused within a round: just enough that the peer, which waits for the rest of a record, knows that we
/// live.
constexpr uint64_t kTrickle = uint64_t{1} << 20;
constexpr Nanos kKeepAlive = std::chrono::seconds(1);

Status check_percent(const ThrottleLimits& limits) {
  const auto wrong = [](unsigned percent) { return percent < 1 || percent > 99; };
  if (!wrong(limits.initial) && !wrong(limits.increment) && !wrong(limits.maximum)) return {};
  return fail(ErrorKind::kUsage, "set the throttle", "its percentages", "give numbers from 1 to 99");
}

}  // namespace

Limits changed_by(Limits limits, const Changes& changes) {
  limits.downtime = changes.downtime.value_or(limits.downtime);
  limits.max_rounds = changes.max_rounds.value_or(limits.max_rounds);
  if (changes.timeout) limits.timeout = *changes.timeout > Nanos{} ? changes.timeout : std::nullopt;
  limits.on_timeout = changes.on_timeout.value_or(limits.on_timeout);
  ThrottleLimits& throttle = limits.throttle;
  throttle.automatic = changes.throttle.value_or(throttle.automatic);
  throttle.initial = changes.throttle_initial.value_or(throttle.initial);
  throttle.increment = changes.throttle_increment.value_or(throttle.increment);
  throttle.maximum = changes.throttle_maximum.value_or(throttle.maximum);
  throttle.dirty_limit = changes.dirty_limit.value_or(throttle.dirty_limit);
  return limits;
}

Control::Control(pid_t pid, const Limits& limits, std::optional<uint64_t> bandwidth,
                 const std::atomic<bool>* signalled)
    : pid_(pid),
      signalled_(signalled),
      has_bandwidth_(bandwidth.has_value()),
      limits_(limits),
      bandwidth_(bandwidth.value_or(0)) {
  statistics_.pid = pid;
  statistics_.started = monotonic_now();
}

// ---- the migrating thread
// -------------------------------------------------------------------------------------------

Limits Control::limits() const {
  const std::lock_guard lock(mutex_);
  return limits_;
}

ThrottleLimits Control::throttle() const {
  const std::lock_guard lock(mutex_);
  return paused_ ? ThrottleLimits{} : limits_.throttle;
}

bool Control::freeze_now() const {
  const std::lock_guard lock(mutex_);
  return freeze_now_;
}

bool Control::switch_now() const {
  const std::lock_guard lock(mutex_);
  return switch_now_;
}

void Control::allow_postcopy() {
  const std::lock_guard lock(mutex_);
  can_switch_ = true;
}

Error Control::end_error(End end) const {
  if (end == End::kOutOfTime)
    return fail(ErrorKind::kNotConverged, "migrate", fmt::format("pid {}", pid_),
                "the time was over in the first round; raise --timeout or --bandwidth");
  return fail(ErrorKind::kCancelled, "migrate", fmt::format("pid {}", pid_), "the original runs on");
}

Status Control::check() {
  if (signalled_ != nullptr && signalled_->load()) (void)cancel();
  const std::lock_guard lock(mutex_);
  if (end_ == End::kNone) return {};
  noticed_ = true;
  return end_error(end_);
}

Error Control::explain(Error error) const {
  const std::lock_guard lock(mutex_);
  if (cut_ && !committed_) return end_error(end_);
  return error;
}

Status Control::wait_while_paused(const std::function<Status()>& alive) {
  for (;;) {
    TRY(check());
    {
      std::unique_lock lock(mutex_);
      const auto go_on = [this] { return !paused_ || freeze_now_ || switch_now_ || end_ != End::kNone; };
      if (go_on()) return {};
      if (changed_.wait_for(lock, kKeepAlive, go_on)) continue;
    }
    TRY(alive());
  }
}

Status Control::begin_commit() {
  TRY(check());
  const std::lock_guard lock(mutex_);
  if (end_ != End::kNone) return end_error(end_);
  committed_ = true;
  return {};
}

void Control::set_link(LinkControl link) {
  const std::lock_guard lock(mutex_);
  // What was sent over a link that goes is still told.
  if (link_.bytes_sent && !link.bytes_sent) statistics_.transferred = link_.bytes_sent();
  link_ = std::move(link);
  apply_bandwidth();
}

void Control::apply_bandwidth() {
  if (!link_.set_bandwidth) return;
  // Only the rounds pause and keep to a limit: neither may make a freeze longer.
  const bool paused = paused_ && statistics_.state == JobState::kActive;
  const bool frozen = statistics_.state == JobState::kDevice || statistics_.state == JobState::kCompleted;
  const bool faster = bandwidth_ == 0 || bandwidth_ > kTrickle;
  link_.set_bandwidth(frozen ? 0 : paused && faster ? kTrickle : bandwidth_);
}

void Control::publish(const std::function<void(Statistics&)>& change) {
  const std::lock_guard lock(mutex_);
  const JobState before = statistics_.state;
  if (link_.bytes_sent) statistics_.transferred = link_.bytes_sent();
  change(statistics_);
  if (statistics_.state != before) apply_bandwidth();
}

// ---- the control socket's thread
// ------------------------------------------------------------------------------------

Statistics Control::statistics() const {
  const std::lock_guard lock(mutex_);
  Statistics now = statistics_;
  if (link_.bytes_sent) now.transferred = link_.bytes_sent();
  if (link_.postcopy_left) now.postcopy_left = link_.postcopy_left();
  if (now.state != JobState::kCompleted) now.total = monotonic_now() - now.started;
  if (end_ != End::kNone) now.state = JobState::kCancelling;
  now.paused = paused_;
  return now;
}

uint64_t Control::bandwidth() const {
  const std::lock_guard lock(mutex_);
  return bandwidth_;
}

Status Control::set(const Changes& changes) {
  const std::lock_guard lock(mutex_);
  if (changes.bandwidth && !has_bandwidth_)
    return fail(ErrorKind::kUsage, "set the bandwidth", fmt::format("pid {}", pid_),
                "this job writes to a file");
  const Limits limits = changed_by(limits_, changes);
  TRY(check_percent(limits.throttle));
  if (limits.max_rounds < 2)
    return fail(ErrorKind::kUsage, "set the limits", "max-rounds", "give a number from 2 on");
  limits_ = limits;
  bandwidth_ = changes.bandwidth.value_or(bandwidth_);
  apply_bandwidth();
  return {};
}

Status Control::refuse_late(const char* wish) const {
  if (!committed_) return {};
  return fail(ErrorKind::kRefused, wish, fmt::format("pid {}", pid_),
              "too late: the destination was told to run it");
}

Status Control::cancel() {
  const std::lock_guard lock(mutex_);
  TRY(refuse_late("cancel"));
  if (end_ != End::kNone) return {};
  end_ = End::kCancelled;
  ended_at_ = monotonic_now();
  changed_.notify_all();
  return {};
}

Status Control::pause() {
  const std::lock_guard lock(mutex_);
  TRY(refuse_late("pause"));
  paused_ = true;
  apply_bandwidth();
  return {};
}

Status Control::resume() {
  const std::lock_guard lock(mutex_);
  paused_ = false;
  apply_bandwidth();
  changed_.notify_all();
  return {};
}

Status Control::freeze_soon() {
  const std::lock_guard lock(mutex_);
  TRY(refuse_late("freeze"));
  freeze_now_ = true;
  paused_ = false;
  apply_bandwidth();
  changed_.notify_all();
  return {};
}

Status Control::switch_soon() {
  const std::lock_guard lock(mutex_);
  TRY(refuse_late("switch to post-copy"));
  if (!can_switch_)
    return fail(ErrorKind::kRefused, "switch to post-copy", fmt::format("pid {}", pid_),
                "the job writes to a file, is not connected yet, or its destination is too old for it");
  switch_now_ = true;
  paused_ = false;
  apply_bandwidth();
  changed_.notify_all();
  return {};
}

void Control::look_around(Nanos now) {
  if (signalled_ != nullptr && signalled_->load()) (void)cancel();
  const std::lock_guard lock(mutex_);
  if (committed_ || cut_) return;
  const bool bulk =
      statistics_.state == JobState::kActive && statistics_.round == 0 && !statistics_.round_ended;
  const bool overdue = bulk && limits_.timeout && limits_.on_timeout == OnTimeout::kCancel &&
                       now - statistics_.started > *limits_.timeout;
  if (overdue && end_ == End::kNone) {
    end_ = End::kOutOfTime;
    ended_at_ = now;
  }
  if (end_ == End::kNone || noticed_ || now - ended_at_ < kOrderly || !link_.cut) return;
  cut_ = true;
  link_.cut();
}

}  // namespace godwit::migration
