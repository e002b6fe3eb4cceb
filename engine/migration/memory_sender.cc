#include "engine/migration/memory_sender.h"

#include <algorithm>

#include "engine/codec/zero_page.h"
#include "engine/migration/carried.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kChunk = 1_MiB;      ///< read at once; fits a batch
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
