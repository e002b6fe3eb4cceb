#include "uffd/run_lists.h"

#include <algorithm>

namespace godwit::uffd {

PageRuns clip_runs(const PageRuns& runs, AddressRange range) {
  PageRuns clipped;
  for (PageRun run : runs) {
    run.range = intersect(run.range, range);
    if (!run.range.empty()) clipped.push_back(run);
  }
  return clipped;
}

PageRuns merge_runs(const PageRuns& newer, const PageRuns& older) {
  PageRuns merged = newer;
  auto next = newer.begin();
  for (const PageRun& run : older) {
    while (next != newer.end() && next->range.end <= run.range.start) ++next;
    PageRun rest = run;
    for (auto i = next; i != newer.end() && i->range.start < run.range.end; ++i) {
      PageRun gap = rest;
      gap.range.end = i->range.start;
      if (!gap.range.empty()) merged.push_back(gap);
      rest.range.start = std::max(rest.range.start, i->range.end);
    }
    if (!rest.range.empty()) merged.push_back(rest);
  }
  std::sort(merged.begin(), merged.end(),
            [](const PageRun& a, const PageRun& b) { return a.range.start < b.range.start; });
  return merged;
}

PageRuns mark_written(const PageRuns& runs, const PageRuns& owed) {
  if (owed.empty()) return runs;
  PageRuns marked;
  for (const PageRun& run : runs) {
    PageRuns pieces = clip_runs(owed, run.range);
    for (PageRun& piece : pieces) {
      const AddressRange range = piece.range;
      piece = run;
      piece.range = range;
      piece.written = true;
    }
    const PageRuns whole = merge_runs(pieces, {run});
    marked.insert(marked.end(), whole.begin(), whole.end());
  }
  return marked;
}

void append_run(PageRuns& runs, const PageRun& run) {
  if (!runs.empty() && runs.back().range.end == run.range.start) {
    PageRun joined = runs.back();
    joined.range = run.range;
    if (joined == run) {
      runs.back().range.end = run.range.end;
      return;
    }
  }
  runs.push_back(run);
}

PageRuns OwedRuns::take(AddressRange range) {
  PageRuns taken = clip_runs(runs_, range);
  PageRuns left = clip_runs(runs_, {RemoteAddr(), range.start});
  const PageRuns above = clip_runs(runs_, {range.end, RemoteAddr(UINT64_MAX)});
  left.insert(left.end(), above.begin(), above.end());
  runs_ = std::move(left);
  return taken;
}

}  // namespace godwit::uffd
