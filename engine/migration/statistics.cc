#include "engine/migration/statistics.h"

#include <algorithm>

#include "engine/base/units.h"

namespace godwit::migration {

std::string_view to_string(JobState state) {
  switch (state) {
    case JobState::kSetup:
      return "setup";
    case JobState::kActive:
      return "active";
    case JobState::kDevice:
      return "device";
    case JobState::kPostcopy:
      return "postcopy-active";
    case JobState::kCompleted:
      return "completed";
    case JobState::kCancelling:
      return "cancelling";
    case JobState::kMeasuring:
      return "measuring";
    case JobState::kInvalid:
      break;
  }
  return "none";
}

uint64_t Statistics::remaining() const {
  if (state == JobState::kPostcopy) return postcopy_left;
  if (round_ended || state == JobState::kCompleted) return 0;
  const uint64_t all = round_pages * kPageSize;
  return all - std::min(all, transferred - std::min(transferred, round_started_bytes));
}

double Statistics::rate(Nanos now) const {
  const double seconds = to_seconds(now - round_started);
  // Less than that says nothing yet.
  constexpr double kTelling = 0.05;
  if (state != JobState::kActive || round_ended || seconds < kTelling) return bytes_per_second;
  return static_cast<double>(transferred - std::min(transferred, round_started_bytes)) / seconds;
}

}  // namespace godwit::migration
