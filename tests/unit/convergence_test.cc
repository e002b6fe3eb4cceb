#include "engine/migration/convergence.h"

#include <gtest/gtest.h>

#include <vector>

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
  return decide({.last = last, .ahead = forecast(last, milliseconds(2)), .elapsed = elapsed}, limits);
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

// 100,000 pages are written in the time in which 100,000 are sent.
const RoundStats kRunningAway = round_of(5, 100'000, milliseconds(200), milliseconds(200));

TEST(Convergence, PostCopySwitchesWhenARoundNoLongerPaysWhateverIsLeft) {
  Limits limits;
  limits.postcopy.allowed = true;
  EXPECT_EQ(decide_after(round_of(0, 100'000, {}, milliseconds(300)), limits), Decision::kContinue);
  // Written as fast as it is sent: no further round pays.
  EXPECT_EQ(decide_after(round_of(1, 100'000, milliseconds(200), milliseconds(200)), limits),
            Decision::kSwitch);
  EXPECT_EQ(decide_after(round_of(1, 25'000, milliseconds(500), milliseconds(51)), limits),
            Decision::kContinue);
}

TEST(Convergence, PostCopyAfterRoundsOrATime) {
  Limits limits;
  limits.postcopy = {.allowed = true, .after_rounds = 1};
  EXPECT_EQ(decide_after(round_of(0, 100, {}, milliseconds(1)), limits), Decision::kSwitch);
  limits.postcopy = {.allowed = true, .after = seconds(5)};
  EXPECT_EQ(decide_after(round_of(3, 3, milliseconds(600), milliseconds(2)), limits, seconds(4)),
            Decision::kFreeze);
  EXPECT_EQ(decide_after(round_of(0, 100, {}, milliseconds(1)), limits, seconds(5)), Decision::kSwitch);
}

TEST(Convergence, OnTimeoutPostCopySwitchesWhatDoesNotFit) {
  Limits limits;
  limits.on_timeout = OnTimeout::kPostcopy;
  limits.downtime = milliseconds(20);
  EXPECT_EQ(decide_after(round_of(29, 100'000, milliseconds(200), milliseconds(200)), limits),
            Decision::kSwitch);
  EXPECT_EQ(decide_after(round_of(29, 3, milliseconds(200), milliseconds(2)), limits), Decision::kFreeze);
}

Limits throttled(ThrottleLimits throttle, Nanos downtime = milliseconds(20)) {
  Limits limits;
  limits.downtime = downtime;
  limits.throttle = throttle;
  return limits;
}
Decision decide_at(ThrottleLevel level, const Limits& limits, const RoundStats& last = kRunningAway) {
  return decide({.last = last, .ahead = forecast(last, milliseconds(2)), .throttle = level}, limits);
}

TEST(Convergence, ARunawayIsThrottledOnlyIfThatIsAllowed) {
  EXPECT_EQ(decide_at({}, throttled({})), Decision::kContinue);
  EXPECT_EQ(decide_at({}, throttled({.automatic = true})), Decision::kThrottle);
  EXPECT_EQ(decide_at({}, throttled({.dirty_limit = 1 << 20})), Decision::kThrottle);
  EXPECT_EQ(decide_at({}, throttled({.automatic = true}, seconds(10))), Decision::kFreeze);
}

TEST(Convergence, WhatGetsAheadByItselfIsNotThrottled) {
  // Of 100,000 pages that were sent 10,000 were written again: above the limit yet, but a tenth a round.
  const RoundStats ahead = round_of(2, 100'000, milliseconds(2000), milliseconds(200));
  EXPECT_EQ(decide_at({}, throttled({.automatic = true}, milliseconds(3)), ahead), Decision::kContinue);
}

TEST(Convergence, TheFirstRoundsAreNotThrottled) {
  EXPECT_EQ(decide_at({}, throttled({.automatic = true}), round_of(0, 100'000, {}, milliseconds(200))),
            Decision::kContinue);
}

TEST(Convergence, AClosedThrottleIsNotTightenedFurther) {
  EXPECT_EQ(decide_at({99, false}, throttled({.automatic = true})), Decision::kContinue);
  EXPECT_EQ(decide_at({0, true}, throttled({.dirty_limit = 1 << 20})), Decision::kContinue);
  EXPECT_EQ(decide_at({0, true}, throttled({.automatic = true, .dirty_limit = 1 << 20})),
            Decision::kThrottle);
}

TEST(Convergence, TheThrottleTightensInStepsUpToItsMaximum) {
  const ThrottleLimits limits{.automatic = true, .initial = 20, .increment = 30, .maximum = 90};
  ThrottleLevel level;
  std::vector<unsigned> steps;
  for (int i = 0; i < 5; ++i) steps.push_back((level = tighten(level, limits)).cpu_percent);
  EXPECT_EQ(steps, (std::vector<unsigned>{20, 50, 80, 90, 90}));
}

TEST(Convergence, WritersAreSlowedBeforeTheWholeProcess) {
  const ThrottleLimits limits{.automatic = true, .dirty_limit = 1 << 20};
  ThrottleLevel level = tighten({}, limits);
  EXPECT_EQ(level, (ThrottleLevel{0, true}));
  level = tighten(level, limits);
  EXPECT_EQ(level, (ThrottleLevel{20, true}));
}

TEST(Convergence, LimitsThatChangeOpenTheThrottle) {
  EXPECT_EQ(within({80, true}, {.automatic = true, .maximum = 50, .dirty_limit = 1}),
            (ThrottleLevel{50, true}));
  EXPECT_TRUE(within({80, true}, {}).open());
}

TEST(Convergence, APersonWhoWantsTheFreezeNowGetsIt) {
  for (const uint32_t round : {0u, 5u}) {
    const RoundStats last = round_of(round, 100'000, milliseconds(200), milliseconds(200));
    EXPECT_EQ(decide({.last = last, .ahead = forecast(last, milliseconds(2)), .freeze_now = true},
                     throttled({}, milliseconds(1))),
              Decision::kFreeze);
  }
}

TEST(Convergence, AtTheLimitsForceFreezesWhateverItCosts) {
  Limits limits = throttled({}, milliseconds(1));
  limits.on_timeout = OnTimeout::kForce;
  limits.timeout = seconds(1);
  EXPECT_EQ(decide_after(kRunningAway, limits, seconds(2)), Decision::kFreeze);
  limits.timeout.reset();
  limits.max_rounds = 6;
  EXPECT_EQ(decide_after(kRunningAway, limits), Decision::kFreeze);
  limits.on_timeout = OnTimeout::kCancel;
  EXPECT_EQ(decide_after(kRunningAway, limits), Decision::kGiveUp);
}

TEST(Convergence, RoundsThatBroughtNothingEndItWhateverTheForecastSays) {
  RoundStats last{.round = 9,
                  .pages = 2000,
                  .wire_bytes = 8 << 20,
                  .interval = milliseconds(100),
                  .duration = milliseconds(40)};
  Situation now{.last = last, .ahead = forecast(last, milliseconds(2))};
  EXPECT_TRUE(pays(now));
  EXPECT_EQ(decide(now, Limits{}), Decision::kContinue);
  now.rounds_without_gain = kPatience;
  EXPECT_FALSE(pays(now));
  EXPECT_EQ(decide(now, Limits{}), Decision::kFreeze);
  EXPECT_EQ(decide(now, Limits{.downtime = milliseconds(1)}), Decision::kContinue) << "too long to freeze";
}

}  // namespace
}  // namespace godwit::migration
