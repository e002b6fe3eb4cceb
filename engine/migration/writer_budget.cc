#include "engine/migration/writer_budget.h"

#include <algorithm>
#include <cmath>

#include "engine/base/units.h"

namespace godwit::migration {

WriterBudget::Turn WriterBudget::look(uint64_t faults, Nanos now, Nanos stood, uint64_t limit) {
  const auto allowed = static_cast<double>(limit);
  const double written = static_cast<double>(faults - std::min(faults, faults_)) * double{kPageSize};
  const double ran = to_seconds(now - at_ - stood);
  // A page that is dirty already is no fault: a thread that writes the same ones seems to rest until the next
  // collect. Its rate is forgotten slowly, so that it does not get a long run just then.
  if (ran > 0) rate_ = std::max(written / ran, rate_ * std::exp(-ran / to_seconds(kMemory)));
  const double saved = allowed * to_seconds(kPeriod);
  level_ = std::min(level_ + allowed * to_seconds(now - at_), saved) - written;
  level_ = std::max(level_, -allowed * to_seconds(kLongestDebt));
  faults_ = faults;
  at_ = now;
  Turn turn;
  if (level_ < 0) turn.stand = std::min(from_seconds(std::min(-level_ / allowed, 1.0)), kLongestStand);
  // A thread that was seen to write gets no longer run than its share of a period.
  const double run = rate_ > allowed ? to_seconds(kPeriod) * allowed / rate_ : to_seconds(kPeriod);
  turn.look = std::max(from_seconds(run), kShortestRun);
  return turn;
}

}  // namespace godwit::migration
