// When to freeze, as a pure function of what the rounds measured. The policy: keep iterating while the next
// round still pays, freeze when it no longer does and the expected downtime is within the limit, give up at
// the limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/base/clock.h"

namespace godwit::migration {

struct RoundStats {
  uint32_t round = 0;  ///< 0 is the bulk round
  uint64_t pages = 0;  ///< written since the collect before (round 0: all that were populated)
  uint64_t wire_bytes = 0;
  Nanos interval{};  ///< between the two collects: the time in which `pages` were written (unused in round 0)
  Nanos
      duration{};  ///< of the round: collect, read, encode, send, and the peer's word that it installed them
  Nanos scan{};    ///< the part of it that looked for dirty pages; the freeze looks once more
};

struct Limits {
  Nanos downtime{std::chrono::milliseconds(300)};  ///< virsh's default
  uint32_t max_rounds = 30;
  std::optional<Nanos> timeout;  ///< for the whole migration
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

enum class Decision : uint8_t { kInvalid = 0, kContinue, kFreeze, kGiveUp };
std::string_view to_string(Decision decision);

/// A gain under this is not worth a round: it is less than the noise of a freeze.
constexpr Nanos kWorthwhile = std::chrono::microseconds(250);

Decision decide(const RoundStats& last, const Forecast& forecast, const Limits& limits, Nanos elapsed);

}  // namespace godwit::migration
