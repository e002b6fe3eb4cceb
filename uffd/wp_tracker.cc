#include "uffd/wp_tracker.h"

#include <algorithm>
#include <array>

#include "engine/base/kernel_features.h"
#include "uffd/areas.h"
#include "uffd/pagemap.h"

namespace godwit::uffd {
namespace {

constexpr uint64_t kPopulated = uapi::kPageIsPresent | uapi::kPageIsSwapped;

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

bool before(const AddressRange& area, RemoteAddr at) {
  return area.end <= at;
}

}  // namespace

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
  areas_known_ = false;  // read at the next scan, when the target need not stand still for it
  return register_areas(uffd_, ranges);
}

/// Whose page it is costs a look at each struct page in a scan, so it is asked only where the answer matters.
/// A new mapping does not escape: a collect of it fails until another track(), and before a survey in the
/// freeze the caller tells that the layout has changed.
Status WpTracker::learn_file_areas() {
  if (areas_known_) return {};
  file_areas_.clear();
  for (const Area& area : TRY(read_areas(pid_))) {
    if (area.file && !area.shared) file_areas_.push_back(area.range);
  }
  areas_known_ = true;
  return {};
}

void WpTracker::release() {
  unregister_areas(uffd_, pid_);
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
    owed_.add(runs);
    return status.take_error();
  }
  if (owed_.empty()) return runs;
  return merge_runs(runs, owed_.take(range));
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
  return mark_written(to_runs(regions_), owed_.in(range));
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
  return merge_runs(to_runs(regions_), owed_.in(range));
}

Result<bool> WpTracker::has_huge_pages(AddressRange range) {
  regions_.clear();
  TRY(scan(range, {0, uapi::kPageIsHuge, 0, uapi::kPageIsHuge}));
  TRY(uffd_.check_alive());
  return !regions_.empty();
}

/// KERNEL: in a mapping of a file, or of hugetlbfs, a discarded page that was write-protected leaves a marker
/// behind, which the scan reports as swapped. Taken for a page, it would hide the discard and old contents
/// would show through. (pagemap shows a marker of hugetlbfs as a mark on nothing.)
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
    for (RemoteAddr at(region.start); at < RemoteAddr(region.end);) {
      for (const uint64_t entry :
           TRY(read_pagemap(scanner_.pagemap_fd(), at, RemoteAddr(region.end), entries))) {
        const uint64_t gone = PagemapEntry(entry).populated() ? 0 : uapi::kPageIsSwapped;
        append_region(settled, {at.value(), (at + kPageSize).value(), region.categories & ~gone});
        at = at + kPageSize;
      }
    }
  }
  regions = std::move(settled);
  return {};
}

}  // namespace godwit::uffd
