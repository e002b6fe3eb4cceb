// Which pages a running process writes: the tracker of pre-copy alone. Place in the pipeline: beside it; the
// dirty rate is measured with it. Thread: the one that began it, which becomes the tracer.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/migration/tracker_kind.h"

namespace godwit::migration {

/// Addresses of the process, whole pages.
struct WrittenSpan {
  uint64_t start = 0, end = 0;
};

struct WrittenPages {
  std::vector<WrittenSpan> spans;  ///< ascending, disjoint
  uint64_t pages = 0;              ///< in them
  Nanos interval{};                ///< since the last look
};

struct WatchOptions {
  TrackerKind tracker = TrackerKind::kAuto;
  const std::atomic<bool>* cancelled = nullptr;  ///< or a wish to end, which must outlive the watch
};

class WriteWatch {
 public:
  /// The process runs on, but for some 100 us here and wherever it maps new memory. Must be called without
  /// other threads: a guardian is forked, which cleans up if this process is killed. A job of this host while
  /// it lasts (job.h). With the tracker uffd-sync only private anonymous memory is seen. Errors: TargetGone,
  /// Denied, Refused (another engine is at work on it, or it uses a userfaultfd of its own).
  static Result<std::unique_ptr<WriteWatch>> begin(pid_t pid, const WatchOptions& options = {});
  /// Nothing is left in the process.
  ~WriteWatch();
  WriteWatch(const WriteWatch&) = delete;
  WriteWatch& operator=(const WriteWatch&) = delete;

  /// Pages written since the last look; at first, and of memory mapped since: all that hold something.
  /// Anonymous and file memory, not shared memory without a file. Errors: TargetGone, System.
  Result<WrittenPages> written();
  /// The one that is in use.
  [[nodiscard]] TrackerKind tracker() const;
  /// Blocks for `time`. Errors: TargetGone and Cancelled, within 50 ms.
  Status wait(Nanos time);

 private:
  struct Parts;
  explicit WriteWatch(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::migration
