#include "engine/migration/convergence.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

RoundStats round_of(uint32_t n, uint64_t pages, Nanos interval, Nanos duration,
                    Nanos scan = milliseconds(1)) {
  RoundStats s;
  s.round = n;
  s.pages = pages;
  s.interval = interval;
  s.duration = duration;
  s.scan = scan;
  return s;
}
Decision decide_after(const RoundStats& last, const Limits& limits = {}, Nanos elapsed = seconds(1)) {
  return decide(last, forecast(last, milliseconds(2)), limits, elapsed);
}

TEST(Convergence, ThereIsARoundAfterTheBulk) {
  EXPECT_EQ(decide_after(round_of(0, 1, {}, milliseconds(1))), Decision::kContinue);
}

TEST(Convergence, AnIdleTargetIsFrozenAtOnce) {
  EXPECT_EQ(decide_after(round_of(1, 3, milliseconds(600), milliseconds(2))), Decision::kFreeze);
}

TEST(Convergence, GoesOnWhileTheNextRoundPays) {
  // 25,000 pages were written in the 500 ms of the bulk round; copying them took 50 ms; the next has a tenth.
  const auto second = round_of(1, 25'000, milliseconds(500), milliseconds(51));
  EXPECT_EQ(decide_after(second), Decision::kContinue);
  EXPECT_GT(forecast(second, milliseconds(2)).downtime, forecast(second, milliseconds(2)).after_next_round);
  // Later the scan is most of a round, and nothing gets better.
  EXPECT_EQ(decide_after(round_of(4, 60, milliseconds(2), milliseconds(1) + microseconds(200))),
            Decision::kFreeze);
}

TEST(Convergence, AboveTheDowntimeLimitItGoesOnUntilTheLimitsAndGivesUp) {
  // Written as fast as it is copied: 100,000 pages in 200 ms, sent in 200 ms.
  Limits limits;
  limits.downtime = milliseconds(20);
  EXPECT_EQ(decide_after(round_of(5, 100'000, milliseconds(200), milliseconds(200)), limits),
            Decision::kContinue);
  EXPECT_EQ(decide_after(round_of(29, 100'000, milliseconds(200), milliseconds(200)), limits),
            Decision::kGiveUp);
  limits.timeout = seconds(10);
  EXPECT_EQ(decide_after(round_of(5, 100'000, milliseconds(200), milliseconds(200)), limits, seconds(10)),
            Decision::kGiveUp);
}

TEST(Convergence, AtTheTimeoutItFreezesIfTheDowntimeFits) {
  Limits limits;
  limits.timeout = seconds(1);
  EXPECT_EQ(decide_after(round_of(2, 1000, milliseconds(10), milliseconds(5)), limits, seconds(2)),
            Decision::kFreeze);
}

}  // namespace
}  // namespace godwit::migration
