#include "engine/migration/convergence.h"

#include <algorithm>

namespace godwit::migration {

Forecast forecast(const RoundStats& last, Nanos state_cost) {
  Forecast f;
  const double copy = std::max(0.0, to_seconds(last.duration - last.scan));
  const double cost_of_page = last.pages == 0 ? 0 : copy / static_cast<double>(last.pages);
  const double interval = to_seconds(last.round == 0 ? last.duration : last.interval);
  // The bulk round says nothing of the rate: every populated page counts as written. Assume the worst.
  f.dirty_pages_per_second = interval <= 0 ? 0 : static_cast<double>(last.pages) / interval;
  const auto downtime = [&](double pages) {
    return state_cost + last.scan + from_seconds(pages * cost_of_page);
  };
  // Nobody can write more distinct pages than there are: the last round's set bounds the next in practice.
  const double most = static_cast<double>(last.pages);
  f.pages_at_freeze = std::min(most, f.dirty_pages_per_second * to_seconds(last.duration));
  f.downtime = downtime(f.pages_at_freeze);
  const double next_round = to_seconds(last.scan) + f.pages_at_freeze * cost_of_page;
  f.after_next_round = downtime(std::min(most, f.dirty_pages_per_second * next_round));
  return f;
}

ThrottleLevel within(ThrottleLevel level, const ThrottleLimits& limits) {
  level.cpu_percent = limits.automatic ? std::min(level.cpu_percent, limits.maximum) : 0;
  level.writers = level.writers && limits.dirty_limit > 0;
  return level;
}

ThrottleLevel tighten(ThrottleLevel level, const ThrottleLimits& limits) {
  level = within(level, limits);
  if (limits.dirty_limit > 0 && !level.writers) {
    level.writers = true;
    return level;
  }
  if (!limits.automatic) return level;
  const unsigned next = level.cpu_percent == 0 ? limits.initial : level.cpu_percent + limits.increment;
  level.cpu_percent = std::min(next, limits.maximum);
  return level;
}

bool pays(const Situation& now) {
  return now.ahead.downtime - now.ahead.after_next_round > kWorthwhile && now.rounds_without_gain < kPatience;
}

namespace {

/// Once it may, waiting brings nothing: the blackout does not depend on what is left.
bool is_time_to_switch(const Situation& now, const PostcopyLimits& limits) {
  if (!limits.allowed) return false;
  const bool rounds_over = limits.after_rounds && now.last.round + 1 >= *limits.after_rounds;
  const bool time_over = limits.after && now.elapsed >= *limits.after;
  if (limits.after_rounds || limits.after) return rounds_over || time_over;
  return now.last.round > 0 && !pays(now);
}

Decision at_the_limits(bool fits, OnTimeout what) {
  if (what == OnTimeout::kPostcopy && !fits) return Decision::kSwitch;
  return fits || what == OnTimeout::kForce ? Decision::kFreeze : Decision::kGiveUp;
}

}  // namespace

Decision decide(const Situation& now, const Limits& limits) {
  if (now.switch_now || is_time_to_switch(now, limits.postcopy)) return Decision::kSwitch;
  if (now.freeze_now) return Decision::kFreeze;
  const Forecast& ahead = now.ahead;
  const bool fits = ahead.downtime <= limits.downtime;
  const bool out_of_time = limits.timeout && now.elapsed >= *limits.timeout;
  const bool last_round = now.last.round + 1 >= limits.max_rounds;
  if (out_of_time || last_round) return at_the_limits(fits, limits.on_timeout);
  // What the bulk round foretells is a guess; there is always one real round after it.
  if (now.last.round == 0) return Decision::kContinue;
  if (!pays(now) && fits) return Decision::kFreeze;
  const bool behind = ahead.pages_at_freeze > kFallsBehind * static_cast<double>(now.last.pages);
  const bool can_tighten = tighten(now.throttle, limits.throttle) != now.throttle;
  return !fits && (behind || !pays(now)) && can_tighten ? Decision::kThrottle : Decision::kContinue;
}

std::string_view to_string(Decision decision) {
  switch (decision) {
    case Decision::kContinue:
      return "continue";
    case Decision::kFreeze:
      return "freeze";
    case Decision::kSwitch:
      return "switch";
    case Decision::kThrottle:
      return "throttle";
    case Decision::kGiveUp:
      return "give up";
    case Decision::kInvalid:
      break;
  }
  return "invalid";
}

}  // namespace godwit::migration
