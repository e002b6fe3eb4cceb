#include "engine/migration/memory_sender.h"

#include <algorithm>

#include "engine/codec/zero_page.h"
#include "engine/state/layout_plan.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kChunk = 1_MiB;      ///< read at once; fits a batch
constexpr uint64_t kLaneBlock = 2_MiB;  ///< addresses of one block share a lane

/// A shared file that this process may not write holds what the destination's file holds.
bool carried(const Vma& vma) {
  if (vma.kind == VmaKind::kFileShared) return vma.has_flag("mw");
  return vma.kind == VmaKind::kAnonymous || vma.kind == VmaKind::kFilePrivate;
}

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

/// The parts of `list` (ascending, disjoint) inside `range`.
std::vector<AddressRange> parts_in(const std::vector<AddressRange>& list, AddressRange range) {
  std::vector<AddressRange> parts;
  auto at = std::lower_bound(list.begin(), list.end(), range.start,
                             [](const AddressRange& r, RemoteAddr start) { return r.end <= start; });
  for (; at != list.end() && at->start < range.end; ++at) parts.push_back(intersect(*at, range));
  return parts;
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

bool touches(const std::vector<AddressRange>& list, AddressRange range) {
  return std::any_of(list.begin(), list.end(), [&](AddressRange r) { return r.overlaps(range); });
}

}  // namespace

Result<std::unique_ptr<Lane>> Lane::create(wire::RecordWriter& writer, size_t cache_bytes) {
  return std::make_unique<Lane>(Lane{&writer, TRY(wire::PageBatchWriter::create()),
                                     TRY(codec::PageEncoder::create(cache_bytes)),
                                     std::vector<std::byte>(kChunk)});
}

void MemorySender::forget(AddressRange range) {
  held_.erase(range);
  shared_files_.erase(range);
  for (auto& lane : lanes_) lane->encoder.discard(0, range);
}

void MemorySender::follow(const Layout& layout) {
  std::vector<AddressRange> wanted;
  for (const Vma& vma : layout) {
    if (carried(vma)) wanted.push_back(vma.range);
  }
  // What the peer unmaps or maps anew, by the same plan, holds nothing there: no page and no base of a delta.
  std::vector<AddressRange> renewed;
  for (const state::LayoutStep& step : state::plan_layout(layout_, layout)) {
    if (step.kind == state::LayoutStep::Kind::kUnmap || step.kind == state::LayoutStep::Kind::kMap) {
      forget(step.area.range);
      renewed.push_back(step.area.range);
    }
  }
  sort_ranges(renewed);
  const auto fresh = without_all(wanted, without_all(tracked_, renewed));
  add_ranges(fresh_, fresh, wanted);
  add_ranges(unregistered_, fresh, wanted);
  tracked_ = std::move(wanted);
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
  std::erase_if(untrackable_, [&](AddressRange old) { return touches(areas, old); });
  for (const AddressRange& range : TRY(tracker_.track(areas))) untrackable_.push_back(range);
  unregistered_.clear();
  return {};
}

Result<PageRuns> MemorySender::collect() {
  PageRuns found;
  std::vector<AddressRange> again;
  for (const Vma& vma : layout_) {
    if (!carried(vma)) continue;
    auto runs = tracker_.collect(vma.range);
    if (!runs.ok() && runs.error().kind == ErrorKind::kRetry) {
      // Replaced under us: the next follow() tracks it anew. The destination still holds what we sent there,
      // and so does `held_`: what the new mapping does not have is discarded in the last pass.
      again.push_back(vma.range);
      continue;
    }
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
  fresh_ = unregistered_;  // what could not be tracked yet stays so
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
  for (const Vma& vma : layout_) {
    if (!carried(vma)) continue;
    PageSet populated;
    for (const AddressRange& part : parts_in(fresh_, vma.range)) {
      for (const PageRun& run : TRY(tracker_.survey(part))) {
        if (run.present && vma.kind == VmaKind::kFileShared) shared_files_.insert(run.range);
        if (run.present && !run.file && vma.kind != VmaKind::kFileShared) populated.insert(run.range);
      }
    }
    for (const AddressRange& known : told.runs_in(vma.range)) populated.erase(known);
    for (const AddressRange& missed : populated.runs()) found.push_back({missed, true, true});
  }
  return {};
}

Result<MemorySender::LastPass> MemorySender::survey() {
  LastPass last;
  for (const Vma& vma : layout_) {
    if (!carried(vma)) continue;
    // Where nothing tells written from clean, every populated page counts as written.
    const bool blind = touches(untrackable_, vma.range) || touches(fresh_, vma.range);
    if (blind)
      TRY(survey_all(vma, last));
    else
      TRY(survey_changes(vma, last));
  }
  for (const AddressRange& range : shared_files_.runs()) last.written.push_back({range, true, true});
  for (const AddressRange& range : last.discarded) counts_.discarded += range.pages();
  return last;
}

void MemorySender::add_written(const Vma& vma, const PageRun& run, LastPass& last) {
  if (run.guard) last.guards.push_back(run.range);
  if (!run.present || (run.file && vma.kind == VmaKind::kFilePrivate)) return;
  if (vma.kind == VmaKind::kFileShared)
    shared_files_.insert(run.range);
  else
    last.written.push_back(run);
}

/// The cheap look: the kernel tells only what is written or absent.
Status MemorySender::survey_changes(const Vma& vma, LastPass& last) {
  std::vector<AddressRange> gone;
  for (const PageRun& run : TRY(tracker_.last_pass(vma.range))) {
    add_written(vma, run, last);
    if (!run.present && !vma.shared) gone.push_back(run.range);
  }
  if (vma.kind == VmaKind::kFilePrivate) return add_reverted(vma, last);
  // Of what is gone at the source, what the destination holds.
  for (const AddressRange& held : held_.runs_in(gone)) last.discarded.push_back(held);
  return {};
}

/// KERNEL: of a private file mapping, a page that was discarded and looked at again shows its file, and keeps
/// the mark of the page before: clean and present, it is in no answer of the cheap look. So the pages that
/// the destination holds, a program's initialised data as a rule, are asked whose they are.
Status MemorySender::add_reverted(const Vma& vma, LastPass& last) {
  for (const AddressRange& held : held_.runs_in(vma.range)) {
    PageSet reverted;
    reverted.insert(held);
    for (const PageRun& run : TRY(tracker_.survey(held))) {
      if (run.present && !run.file) reverted.erase(run.range);
    }
    for (const AddressRange& range : reverted.runs()) last.discarded.push_back(range);
  }
  return {};
}

Status MemorySender::survey_all(const Vma& vma, LastPass& last) {
  PageSet missing;
  for (const AddressRange& range : held_.runs_in(vma.range)) missing.insert(range);
  for (const PageRun& run : TRY(tracker_.survey(vma.range))) {
    add_written(vma, run, last);
    if (run.present && !run.file) missing.erase(run.range);
  }
  if (vma.shared) return {};
  for (const AddressRange& range : missing.runs()) last.discarded.push_back(range);
  return {};
}

Status MemorySender::send(const PageRuns& runs, bool bulk, bool last) {
  for (auto& lane : lanes_) {
    if (!bulk) lane->encoder.begin_round();
    lane->batch.begin(0);
  }
  for (const PageRun& run : runs) {
    RemoteAddr at = run.range.start;
    while (at < run.range.end) {
      const uint64_t block_end = (at.value() / kLaneBlock + 1) * kLaneBlock;
      const RemoteAddr end = std::min({run.range.end, at + kChunk, RemoteAddr(block_end)});
      TRY(send_part(*lanes_[lane_of_(at)], {at, end}, bulk, last));
      at = end;
    }
  }
  return flush();
}

Status MemorySender::send_part(Lane& lane, AddressRange range, bool bulk, bool last) {
  Status sent = bulk ? send_bulk(lane, range) : send_encoded(lane, range, last);
  if (!sent.ok() && sent.error().err == EFAULT && !last) {
    // Part of it was unmapped after the collect. The rest was collected and will not be told again: find it.
    if (range.pages() == 1) return {};
    const RemoteAddr middle = range.start + range.pages() / 2 * kPageSize;
    TRY(send_part(lane, {range.start, middle}, bulk, last));
    return send_part(lane, {middle, range.end}, bulk, last);
  }
  TRY(std::move(sent));
  held_.insert(range);
  counts_.sent += range.pages();
  raw_bytes_ += range.size();
  return {};
}

/// Read straight to where it is sent from.
Status MemorySender::send_bulk(Lane& lane, AddressRange range) {
  if (lane.batch.room().size() < range.size()) TRY(write_batch(lane));
  TRY(memory_.read_ranges(std::span(&range, 1), lane.batch.room().first(range.size())));
  return place_bulk(lane, range.start, range.pages());
}

Status MemorySender::place_bulk(Lane& lane, RemoteAddr at, size_t pages) {
  while (pages > 0) {
    std::span<std::byte> room = lane.batch.room();
    const auto is_zero = [&](size_t i) {
      return codec::is_zero_page(
          std::span<const std::byte, kPageSize>(room.data() + i * kPageSize, kPageSize));
    };
    const bool zero = is_zero(0);
    size_t run = 1;
    while (run < pages && is_zero(run) == zero) ++run;
    const bool placed =
        zero ? lane.batch.append_zero(at.value(), run) : lane.batch.commit_raw(at.value(), run);
    if (!placed) {
      // The table is full: what was read moves to the front of an empty batch.
      std::copy_n(room.data(), pages * kPageSize, lane.staging.data());
      TRY(write_batch(lane));
      std::copy_n(lane.staging.data(), pages * kPageSize, lane.batch.room().data());
      continue;
    }
    (zero ? counts_.zero : counts_.raw) += run;
    pages -= run;
    at = at + run * kPageSize;
    // Raw pages stay where they were read; behind zeros the rest moves up over them.
    if (zero && pages > 0)
      std::copy_n(room.data() + run * kPageSize, pages * kPageSize, lane.batch.room().data());
  }
  return {};
}

Status MemorySender::send_encoded(Lane& lane, AddressRange range, bool last) {
  TRY(memory_.read_ranges(std::span(&range, 1), std::span(lane.staging).first(range.size())));
  for (uint64_t done = 0; done < range.size(); done += kPageSize) {
    const bool full =
        lane.batch.room().size() < codec::kMaxPayload || lane.batch.entries() == wire::kBatchEntries;
    if (full) TRY(write_batch(lane));
    const RemoteAddr at = range.start + done;
    const codec::SourcePage page{{0, at},
                                 codec::PageView(lane.staging.data() + done, kPageSize),
                                 last ? codec::KeepBase::kNo : codec::KeepBase::kYes,
                                 false};
    const codec::EncodedPage encoded = lane.encoder.encode(page, lane.batch.room());
    CHECK(commit(lane, at, encoded));
    count(encoded.encoding);
  }
  return {};
}

bool MemorySender::commit(Lane& lane, RemoteAddr at, codec::EncodedPage encoded) {
  switch (encoded.encoding) {
    case codec::PageEncoding::kZero:
      return lane.batch.append_zero(at.value(), 1);
    case codec::PageEncoding::kRaw:
      return lane.batch.commit_raw(at.value(), 1);
    case codec::PageEncoding::kXbzrle:
      return lane.batch.commit_encoded(wire::PageEncoding::kXbzrle, at.value(), 1, encoded.size);
    default:
      return true;  // unchanged: nothing travels
  }
}

void MemorySender::count(codec::PageEncoding encoding) {
  counts_.zero += encoding == codec::PageEncoding::kZero;
  counts_.raw += encoding == codec::PageEncoding::kRaw;
  counts_.xbzrle += encoding == codec::PageEncoding::kXbzrle;
  counts_.unchanged += encoding == codec::PageEncoding::kUnchanged;
}

Status MemorySender::write_batch(Lane& lane) {
  if (!lane.batch.empty()) wire_bytes_ += lane.batch.record_bytes();
  return lane.writer->write_batch(lane.batch);
}

Status MemorySender::flush() {
  for (auto& lane : lanes_) {
    TRY(write_batch(*lane));
    TRY(lane->writer->flush());
  }
  return {};
}

}  // namespace godwit::migration
