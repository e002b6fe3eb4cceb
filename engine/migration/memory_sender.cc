#include "engine/migration/memory_sender.h"

#include <algorithm>

#include "engine/migration/carried.h"
#include "engine/state/layout_plan.h"

namespace godwit::migration {
namespace {

/// `range` without the parts that `taken` (sorted, disjoint) covers.
std::vector<AddressRange> without(AddressRange range, const std::vector<AddressRange>& taken) {
  std::vector<AddressRange> left;
  RemoteAddr at = range.start;
  for (const AddressRange& t : taken) {
    if (t.end <= at || t.start >= range.end) continue;
    if (at < t.start) left.push_back({at, t.start});
    at = t.end;
  }
  if (at < range.end) left.push_back({at, range.end});
  return left;
}

std::vector<AddressRange> without_all(const std::vector<AddressRange>& ranges,
                                      const std::vector<AddressRange>& taken) {
  std::vector<AddressRange> left;
  for (const AddressRange& range : ranges) {
    for (const AddressRange& part : without(range, taken)) left.push_back(part);
  }
  return left;
}

void sort_ranges(std::vector<AddressRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
}

/// `list` becomes what it was inside `allowed` (ascending), and `more`; ascending, without doubles.
void add_ranges(std::vector<AddressRange>& list, const std::vector<AddressRange>& more,
                const std::vector<AddressRange>& allowed) {
  std::vector<AddressRange> all = more;
  for (const AddressRange& range : list) {
    for (const AddressRange& part : parts_in(allowed, range)) all.push_back(part);
  }
  sort_ranges(all);
  list.clear();
  for (const AddressRange& range : all) {
    if (!list.empty() && range.start <= list.back().end)
      list.back().end = std::max(list.back().end, range.end);
    else
      list.push_back(range);
  }
}

}  // namespace

void MemorySender::forget(AddressRange range) {
  held_.erase(range);
  shared_files_.erase(range);
  lanes_.discard(range);
}

void MemorySender::follow(const Layout& layout) {
  std::vector<AddressRange> wanted, huge;
  for (const Vma& vma : layout) {
    if (is_carried(vma)) wanted.push_back(vma.range);
    if (is_carried(vma) && vma.huge_page != 0) huge.push_back(vma.range);
  }
  // What the peer unmaps or maps anew, by the same plan, holds nothing there: no page and no base of a delta.
  std::vector<AddressRange> renewed;
  for (const state::LayoutStep& step : state::plan_layout(layout_, layout)) {
    if (step.kind == state::LayoutStep::Kind::kUnmap || step.kind == state::LayoutStep::Kind::kMap) {
      forget(step.area.range);
      renewed.push_back(step.area.range);
    }
  }
  lanes_.watch_huge(huge);
  sort_ranges(renewed);
  const auto fresh = without_all(wanted, without_all(tracked_, renewed));
  add_ranges(fresh_, fresh, wanted);
  add_ranges(unregistered_, fresh, wanted);
  tracked_ = std::move(wanted);
  lost_some_ = false;
  layout_ = layout;
  tracker_.layout_changed();
}

Status MemorySender::track(const Layout& now) {
  sort_ranges(unregistered_);
  std::vector<AddressRange> areas;
  auto next = unregistered_.begin();
  for (const Vma& vma : now) {
    while (next != unregistered_.end() && next->end <= vma.range.start) ++next;
    if (next != unregistered_.end() && next->overlaps(vma.range)) areas.push_back(vma.range);
  }
  std::erase_if(untrackable_, [&](AddressRange old) { return touch(areas, old); });
  for (const AddressRange& range : TRY(tracker_.track(areas))) untrackable_.push_back(range);
  // KERNEL: a tracked area never merges with one that is not. So an area that reaches beyond what is new has
  // replaced what was there before, looking like it, and brought pages of its own, with old marks perhaps.
  add_ranges(fresh_, areas, tracked_);
  unregistered_.clear();
  return {};
}

/// What was found before an error counts: its marks are renewed.
Status MemorySender::collect_in(AddressRange area, const std::vector<AddressRange>* guide, PageRuns& found) {
  const std::vector<AddressRange> parts = guide == nullptr ? std::vector{area} : parts_in(*guide, area);
  for (const AddressRange& part : parts) {
    const PageRuns runs = TRY(tracker_.collect(part));
    found.insert(found.end(), runs.begin(), runs.end());
  }
  return {};
}

Result<PageRuns> MemorySender::collect(const std::vector<AddressRange>* guide) {
  PageRuns found;
  const std::vector<AddressRange> known = std::exchange(clean_, {});
  rested_.clear();
  exact_.clear();
  std::vector<AddressRange> again;
  for (const Vma& vma : layout_) {
    if (!is_carried(vma)) continue;
    // Of hugetlbfs a guide would name parts of pages; and what is not tracked is looked at in each round, so
    // that little is left for the freeze.
    const bool huge = vma.huge_page != 0;
    const bool guided = guide != nullptr && !huge && is_in(known, vma.range) && !touch(fresh_, vma.range);
    PageRuns runs;
    Status looked;
    if (huge && touch(untrackable_, vma.range))
      runs = TRY(tracker_.survey(vma.range));
    else
      looked = collect_in(vma.range, guided ? guide : nullptr, runs);
    for (const PageRun& run : runs) {
      // A clean page of a private file mapping comes from the destination's file.
      if (!is_own(vma, run)) continue;
      if (vma.kind == VmaKind::kFileShared)
        shared_files_.insert(run.range);
      else
        found.push_back(run);
    }
    if (!looked.ok() && looked.error().kind == ErrorKind::kRetry) {
      // Replaced under us: the next follow() tracks it anew. The destination still holds what we sent there,
      // and so does `held_`: what the new mapping does not have is discarded in the last pass.
      again.push_back(vma.range);
      continue;
    }
    TRY(std::move(looked));
    clean_.push_back(vma.range);
  }
  TRY(add_unmarked(found));
  fresh_ = unregistered_;  // what could not be tracked yet stays so
  for (const AddressRange& range : again) {
    std::erase_if(tracked_, [&](AddressRange t) { return t.overlaps(range); });
  }
  lost_some_ = !again.empty();
  return found;
}

void MemorySender::distrust(const PageRuns& collected) {
  std::vector<AddressRange> ranges;
  for (const PageRun& run : collected) ranges.push_back(run.range);
  add_ranges(fresh_, ranges, tracked_);
}

/// KERNEL: what was just registered may carry marks of its time before: mremap beside a tracked area joins
/// the two and ends the tracking of both, not the marks. A marked page that was written then is writable as
/// well, and looks clean for ever. So of fresh areas every populated page counts as written, and what the
/// collect did not tell is unmarked, and collected once more.
Status MemorySender::add_unmarked(PageRuns& found) {
  PageSet told;
  for (const PageRun& run : found) told.insert(run.range);
  for (const Vma& vma : layout_) {
    if (!is_carried(vma)) continue;
    PageSet populated;
    for (const AddressRange& part : parts_in(fresh_, vma.range)) {
      for (const PageRun& run : TRY(tracker_.survey(part))) {
        if (run.present && vma.kind == VmaKind::kFileShared) shared_files_.insert(run.range);
        if (is_own(vma, run) && vma.kind != VmaKind::kFileShared) populated.insert(run.range);
      }
    }
    for (const AddressRange& known : told.runs_in(vma.range)) populated.erase(known);
    for (const AddressRange& missed : populated.runs()) {
      TRY(mark_anew(missed));
      found.push_back({missed, true, true});
    }
  }
  return {};
}

/// Replaced meanwhile, it is tracked anew in any case.
Status MemorySender::mark_anew(AddressRange range) {
  Status unmarked = tracker_.unmark(range);
  if (unmarked.ok()) {
    auto again = tracker_.collect(range);
    unmarked = again.ok() ? Status() : again.take_error();
  }
  const bool replaced = !unmarked.ok() && unmarked.error().kind == ErrorKind::kRetry;
  return replaced ? Status() : std::move(unmarked);
}

Status MemorySender::send(const PageRuns& runs, LaneSet::Pass pass) {
  TRY(lanes_.send(memory_, runs, pass));
  lanes_.for_each_sent([&](AddressRange range) {
    held_.insert(range);
    sent_ += range.pages();
    raw_bytes_ += range.size();
  });
  return {};
}

PageCounts MemorySender::counts() const {
  PageCounts sum = lanes_.counts();
  sum.sent = sent_;
  sum.discarded = discarded_;
  return sum;
}

}  // namespace godwit::migration
