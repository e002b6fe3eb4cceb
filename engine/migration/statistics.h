// Where a migration stands, for whoever asks while it runs (`godwit status`). Plain values: the migrating
// thread fills them in, Control keeps them. Place in the pipeline: beside it; nothing in it depends on them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "engine/base/clock.h"
#include "engine/migration/page_counts.h"
#include "engine/migration/report.h"

namespace godwit::migration {

/// QEMU's states, as far as they are ours.
enum class JobState : uint8_t {
  kInvalid = 0,
  kSetup,      ///< checked, connected, armed and described; nothing of the memory has left
  kActive,     ///< rounds
  kDevice,     ///< frozen: the last pages and the state are under way
  kPostcopy,   ///< the destination runs it and lacks pages: they are being served
  kCompleted,  ///< the destination runs it; late packets may still be forwarded
  kCancelling,
  kMeasuring,  ///< no migration: the dirty rate is being measured
};
std::string_view to_string(JobState state);

struct Statistics {
  pid_t pid = 0;
  JobState state = JobState::kSetup;
  std::string destination;
  Nanos started{};  ///< CLOCK_MONOTONIC
  Nanos setup{};    ///< from there to the first round
  Nanos total{};    ///< filled in by whoever asks, until it has ended
  Nanos expected_downtime{};
  Nanos downtime{};  ///< once it is over

  uint32_t round = 0;        ///< that is under way
  uint32_t collects = 0;     ///< how often dirty pages were asked for
  uint64_t total_pages = 0;  ///< that hold something: those of the first round
  uint64_t round_pages = 0;  ///< to be sent in this round
  bool round_ended = false;
  Nanos round_started{};
  uint64_t round_started_bytes = 0;  ///< sent before it
  uint64_t transferred = 0;          ///< bytes, all channels; filled in by whoever asks
  double dirty_pages_per_second = 0;
  double bytes_per_second = 0;  ///< of the last round
  PageCounts pages;             ///< as of the last round's end
  uint64_t postcopy_left = 0;   ///< bytes of missing pages that were not sent yet; filled in by whoever asks
  uint64_t cache_bytes = 0;

  ThrottleLevel throttle;
  bool paused = false;

  /// Bytes of pages that this round has yet to send; none of them known to be zero or equal.
  [[nodiscard]] uint64_t remaining() const;
  /// Of this round, or of the last one while none is under way.
  [[nodiscard]] double rate(Nanos now) const;
};

}  // namespace godwit::migration
