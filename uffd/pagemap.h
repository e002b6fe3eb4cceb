// /proc/PID/pagemap, read page by page (Documentation/admin-guide/mm/pagemap.rst): what kernels without
// PAGEMAP_SCAN offer. Place in the pipeline: the eyes of sync_tracker, and what page_scan asks further where
// its answer is in doubt. Thread: any, each with a scratch of its own.
#pragma once

#include <span>

#include "engine/base/result.h"
#include "engine/model/address_range.h"

namespace godwit::uffd {

class PagemapEntry {
 public:
  constexpr explicit PagemapEntry(uint64_t bits) : bits_(bits) {}

  /// KERNEL: a marker (of write-protection or a guard) looks like a page in swap; it is told by its swap
  /// type, the last of the 32 (MAX_SWAPFILES_SHIFT is 5). Without CAP_SYS_ADMIN type and offset read 0, and
  /// every marker counts as a page.
  [[nodiscard]] constexpr bool marker() const { return has(kSwapped) && (bits_ & 31) == 31; }
  [[nodiscard]] constexpr bool guard() const { return has(kGuard); }  ///< 6.15
  [[nodiscard]] constexpr bool present() const { return has(kPresent); }
  [[nodiscard]] constexpr bool populated() const {
    return present() || (has(kSwapped) && !marker() && !guard());
  }
  /// A page of a file or of shared memory, not one of the process' own.
  [[nodiscard]] constexpr bool file() const { return has(kFile); }
  [[nodiscard]] constexpr bool write_protected() const { return has(kWriteProtected); }  ///< by uffd; 5.14
  /// What tells two entries apart here.
  [[nodiscard]] constexpr uint64_t state() const {
    return (bits_ & (kPresent | kSwapped | kFile | kGuard | kWriteProtected)) | uint64_t{marker()};
  }

 private:
  static constexpr uint64_t kPresent = uint64_t{1} << 63;
  static constexpr uint64_t kSwapped = uint64_t{1} << 62;
  static constexpr uint64_t kFile = uint64_t{1} << 61;
  static constexpr uint64_t kGuard = uint64_t{1} << 58;
  static constexpr uint64_t kWriteProtected = uint64_t{1} << 57;
  [[nodiscard]] constexpr bool has(uint64_t bit) const { return (bits_ & bit) != 0; }
  uint64_t bits_;
};

/// Reads the entries of a part of `range` into `scratch`, from `at` on: as many as fit, up to a boundary of a
/// huge page if there is one. Returns those that were read; at least one. Errors: TargetGone, System.
Result<std::span<const uint64_t>> read_pagemap(int pagemap_fd, RemoteAddr at, RemoteAddr end,
                                               std::span<uint64_t> scratch);

}  // namespace godwit::uffd
