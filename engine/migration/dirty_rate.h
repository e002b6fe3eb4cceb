// How fast a running process writes memory anew: what a migration of it would have to send again. The same
// tracker as in pre-copy, no peer, nothing kept. Thread: the caller's, which becomes the tracer.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/migration/tracker_kind.h"

namespace godwit::migration {

struct DirtyRateOptions {
  pid_t pid = 0;
  unsigned seconds = 1;  ///< each a sample
  TrackerKind tracker = TrackerKind::kAuto;
  const std::atomic<bool>* cancelled = nullptr;
};

struct DirtySample {
  uint64_t pages = 0;  ///< different ones that were written
  Nanos interval{};    ///< in this time
};

struct DirtyRate {
  pid_t pid = 0;
  TrackerKind tracker = TrackerKind::kAuto;  ///< the one that was used
  uint64_t populated = 0;                    ///< pages that held something when it began
  std::vector<DirtySample> samples;

  [[nodiscard]] double pages_per_second() const;  ///< the mean
  [[nodiscard]] double most() const;              ///< of the sample with the most
};

/// Blocks for that many seconds; the process runs on, but for some 100 us at the start and wherever it maps
/// new memory. Counts anonymous and file memory, not
/// shared memory without a file; with the tracker uffd-sync private anonymous memory only. Afterwards, and
/// when this engine is killed, nothing is left in the process. Errors: TargetGone, Denied, Refused (another
/// engine is at work on it, or it uses a userfaultfd of its own), Cancelled.
Result<DirtyRate> measure_dirty_rate(const DirtyRateOptions& options);

}  // namespace godwit::migration
