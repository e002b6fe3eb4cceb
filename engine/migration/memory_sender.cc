#include "engine/migration/memory_sender.h"

#include <algorithm>

#include "engine/migration/carried.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kLaneBlock = 2_MiB;  ///< addresses of one block share a lane

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

}  // namespace

void MemorySender::forget(AddressRange range) {
  held_.erase(range);
  shared_files_.erase(range);
  for (auto& lane : lanes_) lane->discard(range);
}

void MemorySender::follow(const Layout& layout) {
  std::vector<AddressRange> wanted;
  for (const Vma& vma : layout) {
    if (is_carried(vma)) wanted.push_back(vma.range);
  }
  for (const AddressRange& gone : without_all(tracked_, wanted)) forget(gone);
  std::vector<AddressRange> fresh = without_all(wanted, tracked_);
  // An area that was replaced by something else at the same place starts anew, whatever its range.
  for (const Vma& vma : layout) {
    const Vma* old = find_vma(layout_, vma.range.start);
    const bool replaced = old != nullptr && is_carried(vma) &&
                          (old->kind != vma.kind || old->inode != vma.inode || old->shared != vma.shared);
    if (replaced) {
      forget(vma.range);
      fresh.push_back(vma.range);
    }
  }
  fresh_.insert(fresh_.end(), fresh.begin(), fresh.end());
  unregistered_.insert(unregistered_.end(), fresh.begin(), fresh.end());
  tracked_ = std::move(wanted);
  layout_ = layout;
}

Status MemorySender::track(const Layout& now) {
  std::sort(unregistered_.begin(), unregistered_.end(),
            [](AddressRange a, AddressRange b) { return a.start < b.start; });
  std::vector<AddressRange> areas;
  auto next = unregistered_.begin();
  for (const Vma& vma : now) {
    while (next != unregistered_.end() && next->end <= vma.range.start) ++next;
    if (next != unregistered_.end() && next->overlaps(vma.range)) areas.push_back(vma.range);
  }
  std::erase_if(untrackable_, [&](AddressRange old) { return touch(areas, old); });
  for (const AddressRange& range : TRY(tracker_.track(areas))) untrackable_.push_back(range);
  unregistered_.clear();
  return {};
}

Result<PageRuns> MemorySender::collect() {
  PageRuns found;
  clean_.clear();
  rested_.clear();
  std::vector<AddressRange> again;
  for (const Vma& vma : layout_) {
    if (!is_carried(vma)) continue;
    auto runs = tracker_.collect(vma.range);
    if (!runs.ok() && runs.error().kind == ErrorKind::kRetry) {
      // Replaced under us: the next follow() tracks it anew. The destination still holds what we sent there,
      // and so does `held_`: what the new mapping does not have is discarded in the last pass.
      again.push_back(vma.range);
      continue;
    }
    clean_.push_back(vma.range);
    for (const PageRun& run : TRY(std::move(runs))) {
      // A clean page of a private file mapping comes from the destination's file.
      if (!run.present || (run.file && vma.kind == VmaKind::kFilePrivate)) continue;
      if (vma.kind == VmaKind::kFileShared)
        shared_files_.insert(run.range);
      else
        found.push_back(run);
    }
  }
  TRY(add_unmarked(found));
  fresh_.clear();
  for (const AddressRange& range : again) {
    std::erase_if(tracked_, [&](AddressRange t) { return t.overlaps(range); });
  }
  return found;
}

/// KERNEL: what was just registered may carry write-protect marks of an earlier tracker (mremap moved it
/// here), so that a written page of it looks clean: of fresh areas every populated page counts as written.
Status MemorySender::add_unmarked(PageRuns& found) {
  PageSet told;
  for (const PageRun& run : found) told.insert(run.range);
  for (const AddressRange& range : fresh_) {
    PageSet populated;
    for (const PageRun& run : TRY(tracker_.survey(range))) {
      const Vma* vma = find_vma(layout_, run.range.start);
      if (run.present && !run.file && vma != nullptr && vma->kind != VmaKind::kFileShared)
        populated.insert(run.range);
    }
    for (const AddressRange& known : told.runs_in(range)) populated.erase(known);
    for (const AddressRange& missed : populated.runs()) found.push_back({missed, true, true});
  }
  return {};
}

/// Written pages lie scattered: what goes over one lane is read together, a chunk at a time.
Status MemorySender::send(const PageRuns& runs, bool bulk, bool last) {
  for (auto& lane : lanes_) lane->begin_round(bulk);
  Group group;
  for (const PageRun& run : runs) {
    RemoteAddr at = run.range.start;
    while (at < run.range.end) {
      const uint64_t block_end = (at.value() / kLaneBlock + 1) * kLaneBlock;
      const AddressRange part{at, std::min({run.range.end, at + Lane::kChunk, RemoteAddr(block_end)})};
      Lane* lane = lanes_[lane_of_(at)].get();
      at = part.end;
      if (bulk) {
        TRY(send_part(*lane, part, true, last));
        continue;
      }
      if (lane != group.lane || group.size + part.size() > Lane::kChunk) TRY(send_group(group, last));
      group.lane = lane;
      group.ranges.push_back(part);
      group.size += part.size();
    }
  }
  TRY(send_group(group, last));
  return flush();
}

Status MemorySender::send_group(Group& group, bool last) {
  const Group full = std::exchange(group, Group());
  if (full.ranges.empty()) return {};
  Status sent = full.lane->send_again(memory_, full.ranges, last);
  if (!sent.ok() && sent.error().err == EFAULT && !last) {
    for (const AddressRange& range : full.ranges) TRY(send_part(*full.lane, range, false, last));
    return {};
  }
  TRY(std::move(sent));
  for (const AddressRange& range : full.ranges) note_sent(range);
  return {};
}

Status MemorySender::send_part(Lane& lane, AddressRange range, bool bulk, bool last) {
  Status sent = bulk ? lane.send_first(memory_, range) : lane.send_again(memory_, {&range, 1}, last);
  if (!sent.ok() && sent.error().err == EFAULT && !last) {
    // Part of it was unmapped after the collect. The rest was collected and will not be told again: find it.
    if (range.pages() == 1) return {};
    const RemoteAddr middle = range.start + range.pages() / 2 * kPageSize;
    TRY(send_part(lane, {range.start, middle}, bulk, last));
    return send_part(lane, {middle, range.end}, bulk, last);
  }
  TRY(std::move(sent));
  note_sent(range);
  return {};
}

void MemorySender::note_sent(AddressRange range) {
  held_.insert(range);
  sent_ += range.pages();
  raw_bytes_ += range.size();
}

Status MemorySender::flush() {
  for (auto& lane : lanes_) TRY(lane->flush());
  return {};
}

PageCounts MemorySender::counts() const {
  PageCounts sum;
  for (const auto& lane : lanes_) sum += lane->counts();
  sum.sent = sent_;
  sum.discarded = discarded_;
  return sum;
}

uint64_t MemorySender::wire_bytes() const {
  uint64_t sum = 0;
  for (const auto& lane : lanes_) sum += lane->wire_bytes();
  return sum;
}

}  // namespace godwit::migration
