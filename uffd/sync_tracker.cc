#include "uffd/sync_tracker.h"

#include <fcntl.h>

#include <algorithm>

#include "engine/base/kernel_features.h"
#include "uffd/areas.h"

namespace godwit::uffd {
namespace {

constexpr size_t kScratchEntries = 8192;  ///< 64 KiB: 32 MiB of memory a read
constexpr uint64_t kSplitFrom = 64_MiB;   ///< below, waking a helper costs more than it saves
constexpr uint64_t kPiece = 32_MiB;
constexpr uint64_t kHugePage = 2_MiB;

Result<Fd> open_pagemap(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/pagemap", pid);
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.valid()) return fd;
  Error error = fail_errno("open", path);
  if (error.err == ENOENT) error.kind = ErrorKind::kTargetGone;
  return error;
}

PageRun to_run(PagemapEntry entry, bool tracked) {
  PageRun run;
  run.guard = entry.guard();
  run.present = entry.populated();
  run.written = !tracked || (run.present && !entry.write_protected());
  run.file = entry.file();
  return run;
}

void sort_ranges(std::vector<AddressRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
}

}  // namespace

Result<std::unique_ptr<SyncTracker>> SyncTracker::create(pid_t pid, Fd fresh, unsigned scan_threads) {
  if (!kernel_features().uffd_wp_sync)
    return fail(ErrorKind::kUnsupported, "track writes", fmt::format("pid {}", pid),
                "needs userfaultfd write-protection that /proc/PID/pagemap shows (Linux 5.14)");
  Fd pagemap = TRY(open_pagemap(pid));
  // No other feature: what 5.14 lacks is not asked for, and what it has behaves alike on all kernels. Shared
  // memory (5.19) is compared by hash in any case.
  Uffd uffd = TRY(Uffd::adopt(std::move(fresh), UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  std::unique_ptr<SyncTracker> made(
      new SyncTracker(pid, std::move(uffd), std::move(pagemap), std::max(1u, scan_threads)));
  made->handler_ = TRY(FaultHandler::start(made->uffd_));
  return made;
}

SyncTracker::SyncTracker(pid_t pid, Uffd uffd, Fd pagemap, unsigned scan_threads)
    : pid_(pid),
      uffd_(std::move(uffd)),
      pagemap_(std::move(pagemap)),
      scratch_(scan_threads, std::vector<uint64_t>(kScratchEntries)),
      pool_(scan_threads - 1) {}

SyncTracker::~SyncTracker() {
  release();
}

void SyncTracker::release() {
  if (!uffd_.valid()) return;
  unregister_areas(uffd_, pid_);
  // ORDER: answering ends when nothing is registered any more; who waits even so (for an area that moved) is
  // woken by the closing.
  handler_.reset();
  uffd_ = Uffd();
}

/// KERNEL: from 5.19 on shared memory can be registered, too. It would behave otherwise (discarded pages
/// leave marks behind), and covers() must not be asked about it.
Result<std::vector<AddressRange>> SyncTracker::track(const std::vector<AddressRange>& ranges) {
  const auto areas = TRY(read_areas(pid_));
  std::vector<AddressRange> anonymous, others;
  for (const AddressRange range : ranges) {
    const auto area =
        std::lower_bound(areas.begin(), areas.end(), range.start,
                         [](const Area& each, RemoteAddr start) { return each.range.end <= start; });
    const bool other = area != areas.end() && (area->file || area->shared);
    (other ? others : anonymous).push_back(range);
  }
  for (const AddressRange range : TRY(register_areas(uffd_, anonymous))) others.push_back(range);
  sort_ranges(others);
  std::erase_if(untrackable_, [&](AddressRange old) {
    return std::any_of(ranges.begin(), ranges.end(), [&](AddressRange r) { return r.overlaps(old); });
  });
  untrackable_.insert(untrackable_.end(), others.begin(), others.end());
  sort_ranges(untrackable_);
  return others;
}

/// KERNEL: marks say nothing in an area that is not registered (any more): a page that is written there is
/// writable and keeps its mark. So each look first asks how its range is covered; one ioctl as a rule.
Result<std::vector<SyncTracker::Part>> SyncTracker::parts_of(AddressRange range) const {
  if (TRY(uffd_.covers(range))) return std::vector<Part>{{range, Coverage::kTracked}};
  std::vector<Part> parts;
  for (const Area& area : TRY(read_areas(pid_))) {
    const AddressRange part = intersect(area.range, range);
    if (part.empty()) continue;
    Coverage coverage = coverage_of(part);
    if (coverage == Coverage::kLost && TRY(uffd_.covers(part))) coverage = Coverage::kTracked;
    parts.push_back({part, coverage});
  }
  return parts;
}

SyncTracker::Coverage SyncTracker::coverage_of(AddressRange area) const {
  const bool known = std::any_of(untrackable_.begin(), untrackable_.end(),
                                 [&](AddressRange range) { return range.contains(area); });
  return known ? Coverage::kUntrackable : Coverage::kLost;
}

Result<PageRuns> SyncTracker::collect(AddressRange range) {
  PageRuns found;
  Status status;
  for (const Part& part : TRY(parts_of(range))) {
    Status looked;
    if (part.coverage != Coverage::kLost)
      looked = look(Look::kCollect, part, found);
    else
      looked = fail(ErrorKind::kRetry, "collect", fmt::format("pid {}, range {}", pid_, part.range),
                    "a mapping there is new or was replaced: read the layout and track it");
    if (!looked.ok() && status.ok()) status = std::move(looked);
  }
  TRY(uffd_.check_alive());
  if (!status.ok()) {
    // They are protected already: whoever asks next must still hear of them.
    owed_.add(found);
    return status.take_error();
  }
  return owed_.empty() ? found : merge_runs(found, owed_.take(range));
}

Status SyncTracker::unmark(AddressRange range) {
  return uffd_.unprotect(range);
}

Result<PageRuns> SyncTracker::survey(AddressRange range) {
  const PageRuns runs = TRY(look_everywhere(Look::kSurvey, range));
  return mark_written(runs, owed_.in(range));
}

Result<PageRuns> SyncTracker::last_pass(AddressRange range) {
  const PageRuns runs = TRY(look_everywhere(Look::kLastPass, range));
  return merge_runs(runs, owed_.in(range));
}

Result<PageRuns> SyncTracker::look_everywhere(Look what, AddressRange range) {
  PageRuns found;
  for (const Part& part : TRY(parts_of(range))) TRY(look(what, part, found));
  TRY(uffd_.check_alive());
  return found;
}

Status SyncTracker::look(Look what, const Part& part, PageRuns& found) {
  if (pool_.size() > 1 && part.range.size() >= kSplitFrom) return look_in_pieces(what, part, found);
  return look_at_once(what, part, scratch_[0], found);
}

Status SyncTracker::look_in_pieces(Look what, const Part& part, PageRuns& found) {
  // Whole huge pages only: write-protecting a piece of one would split it.
  const uint64_t base = part.range.start.value() & ~(kHugePage - 1);
  const size_t count = (part.range.end.value() - base + kPiece - 1) / kPiece;
  if (answers_.size() < count) answers_.resize(count);
  std::atomic<size_t> next = 0;
  pool_.run([&](unsigned thread) {
    for (size_t i = next++; i < count; i = next++) {
      const AddressRange piece = intersect(part.range, range_of(base + i * kPiece, base + (i + 1) * kPiece));
      answers_[i].runs.clear();
      answers_[i].status = look_at_once(what, {piece, part.coverage}, scratch_[thread], answers_[i].runs);
    }
  });
  Status first;
  for (size_t i = 0; i < count; i++) {
    for (const PageRun& run : answers_[i].runs) append_run(found, run);
    if (first.ok() && !answers_[i].status.ok()) first = std::move(answers_[i].status);
  }
  return first;
}

Status SyncTracker::look_at_once(Look what, const Part& part, std::span<uint64_t> scratch,
                                 PageRuns& found) const {
  const bool tracked = part.coverage == Coverage::kTracked;
  const auto wanted = [&](const PageRun& run) {
    if (what == Look::kCollect) return run.present && (tracked ? run.written : run.file);
    if (what == Look::kSurvey) return run.present || run.guard;
    return run.written || !run.present;
  };
  PageRuns now;  // of one read
  for (RemoteAddr at = part.range.start; at < part.range.end;) {
    const auto entries = TRY(read_pagemap(pagemap_.get(), at, part.range.end, scratch));
    now.clear();
    for (size_t i = 0; i < entries.size();) {
      const PagemapEntry entry(entries[i]);
      size_t end = i + 1;
      while (end < entries.size() && PagemapEntry(entries[end]).state() == entry.state()) end++;
      PageRun run = to_run(entry, tracked);
      run.range = {at + i * kPageSize, at + end * kPageSize};
      if (wanted(run)) append_run(now, run);
      i = end;
    }
    at = at + entries.size() * kPageSize;
    Status status;
    for (const PageRun& run : now) {
      append_run(found, run);
      // ORDER: protected before it is told, and told whatever becomes of that: a write until here is told by
      // this call, and a later one faults and takes the mark away. Only what is told is protected: between
      // the look and now a page may have been born, or a clean one written, beside it.
      if (what == Look::kCollect && tracked && status.ok()) status = uffd_.protect(run.range);
    }
    TRY(std::move(status));
  }
  return {};
}

}  // namespace godwit::uffd
