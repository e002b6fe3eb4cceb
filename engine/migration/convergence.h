// When to freeze, as a pure function of what the rounds measured. The policy: keep iterating while the next
// round still pays, freeze when it no longer does and the expected downtime is within the limit, slow the
// process down when it writes faster than it is sent (if that is allowed), give up or freeze all the same at
// the limits.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "engine/base/clock.h"
#include "engine/migration/page_counts.h"

namespace godwit::migration {

struct RoundStats {
  uint32_t round = 0;  ///< 0 is the bulk round
  uint64_t pages = 0;  ///< written since the collect before (round 0: all that were populated)
  uint64_t wire_bytes = 0;
  PageCounts travelled;  ///< how: more than `pages` where an area was announced anew
  Nanos interval{};  ///< between the two collects: the time in which `pages` were written (unused in round 0)
  Nanos
      duration{};  ///< of the round: collect, read, encode, send, and the peer's word that it installed them
  unsigned throttle_percent = 0;  ///< of its time that the process stood meanwhile
  Nanos scan{};                   ///< the part of it that looked for dirty pages; the freeze looks once more
  bool guided = false;            ///< which was where write faults were heard, not everywhere
};

/// What may be done to a process that writes faster than it can be sent. Names and defaults are QEMU's.
struct ThrottleLimits {
  bool automatic = false;    ///< auto-converge: take CPU time from the whole process, step by step
  unsigned initial = 20;     ///< percent of the time that it stands, at the first step
  unsigned increment = 10;   ///< and more at each further one
  unsigned maximum = 99;     ///< at most
  uint64_t dirty_limit = 0;  ///< bytes a second that one thread may write anew; 0: threads are not told apart

  bool operator==(const ThrottleLimits&) const = default;
};

/// How far the throttle is closed now.
struct ThrottleLevel {
  unsigned cpu_percent = 0;  ///< of the time the whole process stands
  bool writers = false;      ///< the dirty limit is in force

  [[nodiscard]] bool open() const { return cpu_percent == 0 && !writers; }
  bool operator==(const ThrottleLevel&) const = default;
};

/// The next step: first the limit that slows only those who write, then the whole process. The same level
/// again when nothing more is allowed.
ThrottleLevel tighten(ThrottleLevel level, const ThrottleLimits& limits);
/// What is left of `level` under limits that may have changed since.
ThrottleLevel within(ThrottleLevel level, const ThrottleLimits& limits);

/// What happens when the time or the rounds are over and the expected downtime is still above the limit.
enum class OnTimeout : uint8_t { kInvalid = 0, kCancel, kForce, kPostcopy };

/// Whether, and when, the process moves before all of its memory has.
struct PostcopyLimits {
  bool allowed = false;                  ///< as soon as a further round does not pay; or, if one is set:
  std::optional<uint32_t> after_rounds;  ///< after so many, the bulk round counted
  std::optional<Nanos> after;            ///< after so long
};

struct Limits {
  Nanos downtime{std::chrono::milliseconds(300)};  ///< virsh's default
  uint32_t max_rounds = 30;
  std::optional<Nanos> timeout;  ///< for the whole migration
  OnTimeout on_timeout = OnTimeout::kCancel;
  ThrottleLimits throttle;
  PostcopyLimits postcopy;
};

struct Forecast {
  double dirty_pages_per_second = 0;
  double pages_at_freeze = 0;  ///< if it froze now
  Nanos downtime{};            ///< if it froze now
  Nanos after_next_round{};    ///< if one more round went before
};

/// What the last round foretells. `state_cost`: the fixed part (capture, finish, two round trips), as
/// estimated or as measured by an earlier freeze.
Forecast forecast(const RoundStats& last, Nanos state_cost);

/// kSwitch: freeze, and let it run at the destination before the rest has come. kThrottle: another round, and
/// before it the throttle one step tighter.
enum class Decision : uint8_t { kInvalid = 0, kContinue, kFreeze, kSwitch, kThrottle, kGiveUp };
std::string_view to_string(Decision decision);

/// A gain under this is not worth a round: it is less than the noise of a freeze.
constexpr Nanos kWorthwhile = std::chrono::microseconds(250);

/// A round in which more than this part of its pages was written again does not get ahead (QEMU's
/// throttle-trigger-threshold).
constexpr double kFallsBehind = 0.5;

constexpr uint32_t kPatience = 3;

/// Between rounds that do not pay and are made all the same, because the freeze would be too long: without it
/// they would take a processor for nothing.
constexpr Nanos kBreather = std::chrono::milliseconds(20);

/// All that a decision rests on, beside the limits.
struct Situation {
  RoundStats last;
  Forecast ahead;
  Nanos elapsed{};  ///< since the start
  ThrottleLevel throttle;
  bool freeze_now = false;           ///< a person does not want to wait any longer
  bool switch_now = false;           ///< the same, and post-copy is to be used
  uint32_t rounds_without_gain = 0;  ///< since the least downtime that any round foretold
};
/// Whether one more round is likely to make the freeze shorter. Single forecasts are noise: after kPatience
/// rounds that brought nothing, none does.
bool pays(const Situation& now);
Decision decide(const Situation& now, const Limits& limits);

/// What is asked after each round. Another one than decide() sees the same and is bound by the same promises:
/// it says when to freeze, not whether the copy is right.
using Policy = std::function<Decision(const Situation& now, const Limits& limits)>;

}  // namespace godwit::migration
