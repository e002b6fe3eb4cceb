// Lists of page runs as the trackers keep them: sorted, disjoint. Place in the pipeline: inside the trackers,
// between what the kernel answers and what a collect() tells. Thread: the tracker's.
#pragma once

#include "engine/model/page_run.h"

namespace godwit::uffd {

/// Adds the parts of `older` that `newer` does not cover; both sorted. Where both know a page, `newer` is
/// right.
PageRuns merge_runs(const PageRuns& newer, const PageRuns& older);
/// `runs` with `written` set where `owed` has a page.
PageRuns mark_written(const PageRuns& runs, const PageRuns& owed);
/// The parts of `runs` inside `range`.
PageRuns clip_runs(const PageRuns& runs, AddressRange range);
/// Appends a run that lies behind all others, joined to the last one where that fits.
void append_run(PageRuns& runs, const PageRun& run);

/// What a collect() that failed had already marked as clean in the kernel: whoever asks next must hear of it.
class OwedRuns {
 public:
  void add(const PageRuns& newer) { runs_ = merge_runs(newer, runs_); }
  /// What is owed of `range`, and from now on is not.
  PageRuns take(AddressRange range);
  [[nodiscard]] PageRuns in(AddressRange range) const { return clip_runs(runs_, range); }
  [[nodiscard]] bool empty() const { return runs_.empty(); }

 private:
  PageRuns runs_;
};

}  // namespace godwit::uffd
