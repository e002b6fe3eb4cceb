// How long a thread that writes more than it may has to stand: a token bucket over its page faults, for after
// a collect each first write to a page is one fault of the thread that writes. KERNEL: a minor one, or, when
// it had to wait for a handler, a major one. Pure: numbers in, times out.
#pragma once

#include <cstdint>

#include "engine/base/clock.h"

namespace godwit::migration {

class WriterBudget {
 public:
  struct Turn {
    Nanos stand{};  ///< how long it has to stand from now on; zero: it runs
    Nanos look{};   ///< when it runs (again), how long until the next look
  };

  /// The longest stand at once, and the longest time between two looks.
  static constexpr Nanos kLongestStand = std::chrono::milliseconds(200);
  static constexpr Nanos kPeriod = std::chrono::milliseconds(50);
  static constexpr Nanos kShortestRun = std::chrono::microseconds(250);
  /// What a thread that is new here may run until the first look.
  static constexpr Nanos kFirstRun = std::chrono::milliseconds(1);
  /// More debt than this time pays off is forgiven.
  static constexpr Nanos kLongestDebt = std::chrono::seconds(1);
  static constexpr Nanos kMemory = std::chrono::milliseconds(200);

  /// The first look: what was before does not count.
  WriterBudget(uint64_t faults, Nanos now) : faults_(faults), at_(now) {}

  /// `faults`: of the thread, ever. `limit`: bytes a second, not 0. `stood`: how much of the time since the
  /// last look it could not run.
  Turn look(uint64_t faults, Nanos now, Nanos stood, uint64_t limit);

 private:
  uint64_t faults_;
  Nanos at_;
  double level_ = 0;  ///< bytes it may write; negative is debt
  double rate_ = 0;   ///< bytes a second that it writes while it runs
};

}  // namespace godwit::migration
