// PAGEMAP_SCAN of another process: which pages of a range match a query, and optionally write-protect those
// that were written in the same step. Place in the pipeline: the ears of wp_tracker, and page_installer's
// view of what is there. Thread: scan_pagemap anywhere; a PageScanner belongs to one thread at a time, its
// helpers are its own.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/base/fd.h"
#include "engine/base/helper_pool.h"
#include "engine/base/missing_uapi.h"
#include "engine/base/result.h"
#include "engine/model/address_range.h"

namespace godwit::uffd {

/// Categories are uapi::kPageIs*. A page matches when it has all of `all` and, unless zero, one of `any`; a
/// category in `inverted` counts as had where the page lacks it.
struct ScanQuery {
  uint64_t flags = 0;  ///< uapi::kPmScanWpMatching: written matches become write-protected
                       ///< uapi::kPmScanCheckWpAsync: an area without async write-protection is an error
  uint64_t all = 0;
  uint64_t any = 0;
  uint64_t report = 0;  ///< the categories that the answer tells
  uint64_t inverted = 0;
};

/// Sorted and disjoint; neighbours with equal categories are joined.
using PageRegions = std::vector<uapi::PageRegion>;

/// Appends the matches of `range` to `found`. `scratch` is one kernel answer's room: zeroed before the first
/// use, left zeroed. Errors: Retry when an area without async write-protection was met under the check flag,
/// System. KERNEL: what came before that area was already write-protected; it is in `found` even when this
/// fails, and a caller that drops it loses writes.
Status scan_pagemap(int pagemap_fd, AddressRange range, const ScanQuery& query,
                    std::span<uapi::PageRegion> scratch, PageRegions& found);

/// The same by reading pagemap page by page, for kernels without PAGEMAP_SCAN; scan_pagemap takes this way
/// where it must. `query` must not change anything (no flags), and nobody is told of the zero page. Errors:
/// TargetGone, System.
Status scan_by_reading(int pagemap_fd, AddressRange range, const ScanQuery& query, PageRegions& found);

/// Adds one region to a list, joined to the last one where that fits.
void append_region(PageRegions& list, const uapi::PageRegion& region);

class PageScanner {
 public:
  /// Opens /proc/PID/pagemap (it stays with this address space, even across execve) and makes `threads` - 1
  /// helpers. Errors: TargetGone, Denied.
  static Result<PageScanner> create(pid_t pid, unsigned threads);

  /// As scan_pagemap; large ranges are split by address among the threads. `found` is filled on failure too.
  Status scan(AddressRange range, const ScanQuery& query, PageRegions& found);

  /// Whether the kernel knows PAGE_IS_GUARD (6.15).
  [[nodiscard]] bool knows_guards() const { return knows_guards_; }
  [[nodiscard]] int pagemap_fd() const { return pagemap_.get(); }

 private:
  struct Part {
    PageRegions found;
    Status status;
  };
  Status scan_in_parts(AddressRange range, const ScanQuery& query, PageRegions& found);

  Fd pagemap_;
  bool knows_guards_ = false;
  std::vector<std::vector<uapi::PageRegion>> scratch_;  // one a thread
  std::vector<Part> parts_;                             // kept between scans for their room
  std::unique_ptr<HelperPool> pool_;
};

}  // namespace godwit::uffd
