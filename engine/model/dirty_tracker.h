// What the algorithm asks of any way to see writes. Implementations: uffd/wp_tracker, uffd/sync_tracker.
#pragma once

#include "engine/base/result.h"
#include "engine/model/page_run.h"
#include "engine/model/vma.h"

namespace godwit {

class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;

  /// Brings `ranges` under the tracker; a range that already is stays as it was. They are whole areas of a
  /// target that stands still: a part of an area would be split off, which the program could see. Ranges that
  /// the kernel cannot track are returned (their pages are re-sent in the freeze). Errors: TargetGone,
  /// Denied, System.
  virtual Result<std::vector<AddressRange>> track(const std::vector<AddressRange>& ranges) = 0;

  /// The layout is another one than at the last look: areas may have come, also without being tracked.
  virtual void layout_changed() = 0;

  /// The pages of `range` written since the last collect (all populated ones at first), and from now on
  /// clean. A write during the call is reported by this call or by the next. Runs are sorted, `written` is
  /// set in all. Errors: TargetGone; Retry when a part of `range` is no longer tracked (it was unmapped or
  /// replaced): re-read the layout, track, and collect again.
  virtual Result<PageRuns> collect(AddressRange range) = 0;

  /// Takes the marks off pages of `range`, tracked areas, that a collect did not tell although they are new
  /// to it: a mark that they brought along hides their writes. The next collect tells them. Errors:
  /// TargetGone; Retry as collect().
  virtual Status unmark(AddressRange range) = 0;

  /// Every populated or written page of `range` with its state, changing nothing. For the last pass, target
  /// frozen.
  virtual Result<PageRuns> survey(AddressRange range) = 0;

  /// The same, but only what is written, and (not `present`) what holds nothing: four times cheaper than a
  /// survey, for its answer is short. Clean, populated pages are not told. Where an area is not tracked (any
  /// more), all its pages count as written.
  virtual Result<PageRuns> last_pass(AddressRange range) = 0;

  /// Is any page of `range` part of a huge one, so that a write to it may open its neighbours? Whoever cannot
  /// tell says so. Errors: TargetGone, System.
  virtual Result<bool> has_huge_pages(AddressRange range) = 0;

  /// From now on (or no more) each first write to a page after a collect is a fault of the thread that
  /// writes, for whoever counts those. Any thread.
  virtual void fault_on_each(bool each) = 0;

  /// Stops tracking, area by area. Afterwards the tracker is of no use.
  virtual void release() = 0;
};

}  // namespace godwit
