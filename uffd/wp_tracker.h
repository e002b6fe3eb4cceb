// Sees writes by asynchronous write-protection: a written page loses its mark in the page tables, without a
// handler, and PAGEMAP_SCAN reads and renews the marks. Place in the pipeline: the first stage on the source.
// Thread: one at a time (scans use helper threads of their own).
//
// What the caller must know beyond DirtyTracker:
//  - collect() tells of pages that hold something. A discarded page (MADV_DONTNEED) holds nothing and is told
//  by
//    nobody: keep a bitmap of what was sent, and in the last pass what was sent but is not in survey() was
//    discarded. That holds for private mappings only; pages of a shared one are unmapped by reclaim too,
//    their object keeps them.
//  - A part of `range` that is not mapped at all has no pages and is no error; the layout tells of it.
//  - A mapping that is new, was replaced, moved, or grew by mmap, mremap or brk is not tracked; a scan over
//  it is
//    Retry. What was already cleared before it was met is kept and told by the next collect() of those
//    addresses.
//  - Blind to: writes through other mappings of a shared object that are not tracked, writes to it by
//  descriptor,
//    hole punching, and long-term pinned buffers (io_uring READ_FIXED, RDMA).
//  - Destruction gives everything back; its cost grows with the present pages (see uffd.h), so not in the
//  freeze.
#pragma once

#include "engine/model/dirty_tracker.h"
#include "uffd/page_scan.h"
#include "uffd/run_lists.h"
#include "uffd/uffd.h"

namespace godwit::uffd {

class WpTracker : public DirtyTracker {
 public:
  /// `fresh` was made by userfaultfd(2) inside process `pid`. `scan_threads` counts the caller; the helpers
  /// are made here. Errors: Unsupported (no WP_ASYNC), TargetGone, Denied, System.
  static Result<WpTracker> create(pid_t pid, Fd fresh, unsigned scan_threads = 2);

  /// One ioctl for each stretch of adjacent ranges, one a range where a stretch does not take it. The target
  /// must stand still since its areas were read, and `ranges` be whole areas: a part would be split off.
  Result<std::vector<AddressRange>> track(const std::vector<AddressRange>& ranges) override;
  void layout_changed() override { areas_known_ = false; }
  Result<PageRuns> collect(AddressRange range) override;
  Status unmark(AddressRange range) override;
  /// Only populated pages. A guard page has `guard` and is not `present`.
  Result<PageRuns> survey(AddressRange range) override;

  /// The cheap last pass, target frozen: every page that was written since the last collect() and every page
  /// that holds nothing (not `present`), changing nothing. What it does not tell is populated and as it was
  /// last collected; a run that is present but not written (in swap) is so too. Costs as a collect() of clean
  /// memory, a quarter of a survey. Errors: TargetGone, System; an untracked mapping is no error, all its
  /// pages count as written.
  Result<PageRuns> last_pass(AddressRange range) override;

  Result<bool> has_huge_pages(AddressRange range) override;

  void fault_on_each(bool) override {}  // they always do

  /// Stops tracking area by area, so that a running target does not wait for all of it at once; afterwards
  /// only destruction is allowed.
  void release() override;

 private:
  WpTracker(pid_t pid, Uffd uffd, PageScanner scanner)
      : pid_(pid), uffd_(std::move(uffd)), scanner_(std::move(scanner)) {}

  Status learn_file_areas();
  Status scan(AddressRange range, const ScanQuery& query);
  [[nodiscard]] uint64_t reported() const;
  Status settle_markers(PageRegions& regions);

  pid_t pid_;
  Uffd uffd_;
  PageScanner scanner_;
  std::vector<AddressRange>
      file_areas_;  // private mappings of files, sorted: only there it matters whose page it is
  bool areas_known_ = false;
  PageRegions regions_;  // kept between scans for its room
  OwedRuns owed_;
};

}  // namespace godwit::uffd
