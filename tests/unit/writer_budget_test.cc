// A thread that writes without pause under a budget, simulated: what it writes is what it may.
#include "engine/migration/writer_budget.h"

#include <gtest/gtest.h>

#include "engine/base/units.h"

namespace godwit::migration {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kLimit = 4_MiB;

struct Ran {
  double bytes_per_second = 0;
  double part = 0;  ///< of the time, not standing
};

/// `rate`: bytes a second while it runs.
Ran simulate(double rate, Nanos time, uint64_t limit = kLimit) {
  Nanos now{}, ran{};
  WriterBudget budget(0, now);
  Nanos run = WriterBudget::kPeriod, stood{};
  while (now < time) {
    now += run;
    ran += run;
    const double seconds_run = to_seconds(ran);
    const auto faults = static_cast<uint64_t>(rate * seconds_run / double{kPageSize});
    for (;;) {
      const WriterBudget::Turn turn = budget.look(faults, now, stood, limit);
      stood = {};
      run = turn.look;
      if (turn.stand == Nanos{}) break;
      EXPECT_LE(turn.stand, WriterBudget::kLongestStand);
      now += turn.stand;
      stood = turn.stand;
    }
  }
  return {rate * to_seconds(ran) / to_seconds(now),
          static_cast<double>(ran.count()) / static_cast<double>(now.count())};
}

TEST(WriterBudget, WhoWritesLessIsNeverStopped) {
  EXPECT_EQ(simulate(0, seconds(5)).part, 1);
  EXPECT_EQ(simulate(double{kLimit} * 0.9, seconds(5)).part, 1);
}

TEST(WriterBudget, WhoWritesMoreIsHeldToTheLimit) {
  for (const double more : {2.0, 10.0, 100.0}) {
    const Ran ran = simulate(double{kLimit} * more, seconds(60));
    EXPECT_NEAR(ran.bytes_per_second, double{kLimit}, double{kLimit} * 0.15) << more;
  }
}

TEST(WriterBudget, AFastWriterUnderASmallLimitStillRuns) {
  const Ran ran = simulate(1.6e9, seconds(120), 64_KiB);
  EXPECT_GT(ran.part, 0);
  // Of each second that pays off the longest debt it runs the shortest time.
  EXPECT_LT(ran.part, 0.001);
}

TEST(WriterBudget, WhatWasWrittenBeforeDoesNotCount) {
  WriterBudget budget(1'000'000, Nanos{});
  EXPECT_EQ(budget.look(1'000'000, milliseconds(1), {}, kLimit).stand, Nanos{});
  // Numbers that run backwards (another thread of that id) are no debt either.
  EXPECT_EQ(budget.look(5, milliseconds(2), {}, kLimit).stand, Nanos{});
}

TEST(WriterBudget, NothingIsSavedUpForLong) {
  WriterBudget budget(0, Nanos{});
  (void)budget.look(0, seconds(100), {}, kLimit);
  // A period's worth is free, a second's is not.
  EXPECT_GT(budget.look(kLimit / kPageSize, seconds(100), {}, kLimit).stand, Nanos{});
}

}  // namespace
}  // namespace godwit::migration
