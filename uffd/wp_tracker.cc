#include "uffd/wp_tracker.h"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "engine/base/files.h"
#include "engine/base/kernel_features.h"

namespace godwit::uffd {
namespace {

constexpr uint64_t kPopulated = uapi::kPageIsPresent | uapi::kPageIsSwapped;

struct Area {
  AddressRange range;
  bool private_file;
};

Result<std::vector<Area>> read_areas(pid_t pid) {
  const std::string maps = TRY(read_file(fmt::format("/proc/{}/maps", pid)));
  std::vector<Area> areas;
  for (const std::string_view line : split(maps, '\n')) {
    const std::vector<std::string_view> words = split(line, ' ');  // range perms offset device inode [path]
    if (words.size() < 5 || words[1].size() != 4) continue;
    const std::vector<std::string_view> ends = split(words[0], '-');
    const auto start = parse_number(ends.front(), 16);
    const auto end = parse_number(ends.back(), 16);
    if (!start || !end || *end > kUserSpaceEnd) continue;  // vsyscall lies above
    areas.push_back({range_of(*start, *end), words[1][3] == 'p' && words[4] != "0"});
  }
  return areas;
}

bool has(const uapi::PageRegion& region, uint64_t category) {
  return (region.categories & category) != 0;
}

PageRun to_run(const uapi::PageRegion& region) {
  PageRun run;
  run.range = range_of(region.start, region.end);
  run.written = has(region, uapi::kPageIsWritten) || !has(region, uapi::kPageIsWpAllowed);
  run.guard = has(region, uapi::kPageIsGuard);
  run.present = has(region, kPopulated) && !run.guard;
  run.zero = has(region, uapi::kPageIsPfnZero);
  run.file = has(region, uapi::kPageIsFile);
  return run;
}

PageRuns to_runs(const PageRegions& regions) {
  PageRuns runs;
  runs.reserve(regions.size());
  for (const uapi::PageRegion& region : regions) runs.push_back(to_run(region));
  return runs;
}

/// An entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). KERNEL: a write-protection or
/// guard marker looks like a page in swap; it is told by its swap type, the last of the 32
/// (MAX_SWAPFILES_SHIFT is 5). Without CAP_SYS_ADMIN type and offset read 0, and every marker counts as a
/// page.
bool is_marker(uint64_t entry) {
  constexpr uint64_t kSwap = uint64_t{1} << 62;
  constexpr uint64_t kMarkerType = 31;
  return (entry & kSwap) != 0 && (entry & 31) == kMarkerType;
}

PageRuns clip_runs(const PageRuns& runs, AddressRange range) {
  PageRuns clipped;
  for (PageRun run : runs) {
    run.range = intersect(run.range, range);
    if (!run.range.empty()) clipped.push_back(run);
  }
  return clipped;
}

bool before(const AddressRange& area, RemoteAddr at) {
  return area.end <= at;
}

}  // namespace

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

Result<WpTracker> WpTracker::create(pid_t pid, Fd fresh, unsigned scan_threads) {
  const KernelFeatures& kernel = kernel_features();
  if (!kernel.uffd_wp_async || !kernel.pagemap_scan) {
    return fail(ErrorKind::kUnsupported, "track writes", fmt::format("pid {}", pid),
                "needs UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN (Linux 6.7)");
  }
  // KERNEL: anonymous areas accept the scan only with WP_UNPOPULATED. Its markers are never wanted: every
  // query asks for populated pages, so that huge sparse mappings cost no page tables.
  uint64_t features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;
  if (kernel.uffd_wp_shmem) features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  PageScanner scanner = TRY(PageScanner::create(pid, scan_threads));
  Uffd uffd = TRY(Uffd::adopt(std::move(fresh), features));
  return WpTracker(pid, std::move(uffd), std::move(scanner));
}

Result<std::vector<AddressRange>> WpTracker::track(const std::vector<AddressRange>& ranges) {
  std::vector<AddressRange> sorted, untrackable;
  std::copy_if(ranges.begin(), ranges.end(), std::back_inserter(sorted),
               [](AddressRange r) { return !r.empty(); });
  std::sort(sorted.begin(), sorted.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end].start == sorted[end - 1].end) end++;
    TRY(register_stretch(std::span(sorted).subspan(i, end - i), untrackable));
    i = end;
  }
  areas_known_ = false;  // read at the next scan, when the target need not stand still for it
  return untrackable;
}

Status WpTracker::register_stretch(std::span<const AddressRange> ranges,
                                   std::vector<AddressRange>& untrackable) {
  if (ranges.size() > 1) {
    const AddressRange all{ranges.front().start, ranges.back().end};
    if (uffd_.register_range(all, UFFDIO_REGISTER_MODE_WP).ok()) return {};
  }
  for (const AddressRange range : ranges) TRY(register_one(range, untrackable));
  return {};
}

Status WpTracker::register_one(AddressRange range, std::vector<AddressRange>& untrackable) {
  Status status = uffd_.register_range(range, UFFDIO_REGISTER_MODE_WP);
  if (status.ok()) return status;
  // KERNEL: on a dead mm registering answers ENOMEM, so ask first whether it lives.
  TRY(uffd_.check_alive());
  if (status.error().kind != ErrorKind::kUnsupported) return status;
  untrackable.push_back(range);
  return {};
}

/// Whose page it is costs a look at each struct page in a scan, so it is asked only where the answer matters.
/// A new mapping does not escape: a collect of it fails until another track(), and before a survey in the
/// freeze the caller tells that the layout has changed.
Status WpTracker::learn_file_areas() {
  if (areas_known_) return {};
  file_areas_.clear();
  for (const Area& area : TRY(read_areas(pid_))) {
    if (area.private_file) file_areas_.push_back(area.range);
  }
  areas_known_ = true;
  return {};
}

void WpTracker::release() {
  const Result<std::vector<Area>> areas = read_areas(pid_);
  if (areas.ok()) {
    // Those that were never registered, or cannot be, answer with errors of no interest.
    for (const Area& area : areas.value()) (void)uffd_.unregister_range(area.range);
  }
  uffd_ = Uffd();
}

uint64_t WpTracker::reported() const {
  return uapi::kPageIsWritten | uapi::kPageIsWpAllowed | kPopulated | uapi::kPageIsPfnZero |
         (scanner_.knows_guards() ? uapi::kPageIsGuard : 0);
}

Status WpTracker::scan(AddressRange range, const ScanQuery& query) {
  TRY(learn_file_areas());
  ScanQuery file_query = query;
  file_query.report |= uapi::kPageIsFile;
  RemoteAddr at = range.start;
  auto area = std::lower_bound(file_areas_.begin(), file_areas_.end(), at, before);
  for (; area != file_areas_.end() && area->start < range.end; ++area) {
    const AddressRange file = intersect(*area, range);
    if (at < file.start) TRY(scanner_.scan({at, file.start}, query, regions_));
    TRY(scanner_.scan(file, file_query, regions_));
    at = file.end;
  }
  if (at < range.end) TRY(scanner_.scan({at, range.end}, query, regions_));
  return {};
}

Result<PageRuns> WpTracker::collect(AddressRange range) {
  // KERNEL: a hole (no page table, such as a huge page dropped by MADV_DONTNEED) is never WRITTEN on 6.18 and
  // may be on later kernels; asking for populated pages makes both alike.
  const ScanQuery query{uapi::kPmScanWpMatching | uapi::kPmScanCheckWpAsync, uapi::kPageIsWritten, kPopulated,
                        reported()};
  regions_.clear();
  Status status = scan(range, query);
  TRY(uffd_.check_alive());
  PageRuns runs = to_runs(regions_);
  if (!status.ok()) {
    // Their marks are renewed already: whoever asks next must still hear of them.
    owed_ = merge_runs(runs, owed_);
    return status.take_error();
  }
  if (owed_.empty()) return runs;
  return merge_runs(runs, take_owed(range));
}

PageRuns WpTracker::take_owed(AddressRange range) {
  PageRuns taken = clip_runs(owed_, range);
  PageRuns left = clip_runs(owed_, {RemoteAddr(), range.start});
  const PageRuns above = clip_runs(owed_, {range.end, RemoteAddr(UINT64_MAX)});
  left.insert(left.end(), above.begin(), above.end());
  owed_ = std::move(left);
  return taken;
}

Status WpTracker::unmark(AddressRange range) {
  return uffd_.unprotect(range);
}

Result<PageRuns> WpTracker::survey(AddressRange range) {
  regions_.clear();
  TRY(scan(range, ScanQuery{0, 0, kPopulated, reported()}));
  TRY(settle_markers(regions_));
  TRY(uffd_.check_alive());
  std::erase_if(regions_, [](const uapi::PageRegion& region) { return !has(region, kPopulated); });
  return mark_written(to_runs(regions_), clip_runs(owed_, range));
}

Result<PageRuns> WpTracker::last_pass(AddressRange range) {
  // Written or not present: clean pages, the bulk, match nothing and cost no output. KERNEL: an area that is
  // not tracked any more (mremap) keeps its marks, and they say nothing.
  ScanQuery query{0, 0, uapi::kPageIsWritten | uapi::kPageIsPresent | uapi::kPageIsWpAllowed, reported()};
  query.inverted = uapi::kPageIsPresent | uapi::kPageIsWpAllowed;
  regions_.clear();
  TRY(scan(range, query));
  TRY(settle_markers(regions_));
  TRY(uffd_.check_alive());
  return merge_runs(to_runs(regions_), clip_runs(owed_, range));
}

/// KERNEL: in a private file mapping a discarded page that was write-protected leaves a marker behind, which
/// the scan reports as swapped. Taken for a page, it would hide the discard and old contents would show
/// through.
Status WpTracker::settle_markers(PageRegions& regions) {
  const auto doubtful = [](const uapi::PageRegion& r) {
    return has(r, uapi::kPageIsSwapped) && !has(r, uapi::kPageIsGuard);
  };
  if (std::none_of(regions.begin(), regions.end(), doubtful)) return {};
  PageRegions settled;
  std::array<uint64_t, 512> entries;
  for (const uapi::PageRegion& region : regions) {
    if (!doubtful(region)) {
      append_region(settled, region);
      continue;
    }
    for (uint64_t at = region.start; at < region.end;) {
      const size_t want = std::min<size_t>(entries.size(), (region.end - at) >> kPageShift);
      const ssize_t got = ::pread(scanner_.pagemap_fd(), entries.data(), want * sizeof entries[0],
                                  static_cast<off_t>((at >> kPageShift) * sizeof entries[0]));
      if (got <= 0) {
        return fail_errno("read", fmt::format("/proc/{}/pagemap at {:#x}", pid_, at),
                          got < 0 ? errno : ESRCH);
      }
      for (size_t i = 0; i < static_cast<size_t>(got) / sizeof entries[0]; i++, at += kPageSize) {
        const uint64_t gone = is_marker(entries[i]) ? uapi::kPageIsSwapped : 0;
        append_region(settled, {at, at + kPageSize, region.categories & ~gone});
      }
    }
  }
  regions = std::move(settled);
  return {};
}

}  // namespace godwit::uffd
