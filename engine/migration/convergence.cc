#include "engine/migration/convergence.h"

#include <algorithm>

namespace godwit::migration {
namespace {

double seconds(Nanos t) {
  return std::chrono::duration<double>(t).count();
}
Nanos nanos(double s) {
  return Nanos(static_cast<int64_t>(s * 1e9));
}

}  // namespace

Forecast forecast(const RoundStats& last, Nanos state_cost) {
  Forecast f;
  const double copy = std::max(0.0, seconds(last.duration - last.scan));
  const double cost_of_page = last.pages == 0 ? 0 : copy / static_cast<double>(last.pages);
  const double interval = seconds(last.round == 0 ? last.duration : last.interval);
  // The bulk round says nothing of the rate: every populated page counts as written. Assume the worst.
  f.dirty_pages_per_second = interval <= 0 ? 0 : static_cast<double>(last.pages) / interval;
  const auto downtime = [&](double pages) { return state_cost + last.scan + nanos(pages * cost_of_page); };
  // Nobody can write more distinct pages than there are: the last round's set bounds the next in practice.
  const double most = static_cast<double>(last.pages);
  f.pages_at_freeze = std::min(most, f.dirty_pages_per_second * seconds(last.duration));
  f.downtime = downtime(f.pages_at_freeze);
  const double next_round = seconds(last.scan) + f.pages_at_freeze * cost_of_page;
  f.after_next_round = downtime(std::min(most, f.dirty_pages_per_second * next_round));
  return f;
}

Decision decide(const RoundStats& last, const Forecast& forecast, const Limits& limits, Nanos elapsed) {
  const bool out_of_time = limits.timeout && elapsed >= *limits.timeout;
  const bool last_round = last.round + 1 >= limits.max_rounds;
  if (out_of_time || last_round)
    return forecast.downtime <= limits.downtime ? Decision::kFreeze : Decision::kGiveUp;
  // What the bulk round foretells is a guess; there is always one real round after it.
  if (last.round == 0) return Decision::kContinue;
  const bool pays = forecast.downtime - forecast.after_next_round > kWorthwhile;
  if (!pays && forecast.downtime <= limits.downtime) return Decision::kFreeze;
  return Decision::kContinue;
}

std::string_view to_string(Decision decision) {
  switch (decision) {
    case Decision::kContinue:
      return "continue";
    case Decision::kFreeze:
      return "freeze";
    case Decision::kGiveUp:
      return "give up";
    case Decision::kInvalid:
      break;
  }
  return "invalid";
}

}  // namespace godwit::migration
