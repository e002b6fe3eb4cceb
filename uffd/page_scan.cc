#include "uffd/page_scan.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "uffd/pagemap.h"

namespace godwit::uffd {
namespace {

constexpr size_t kScratchRegions = 4096;  // 96 KiB: stays in the second-level cache
constexpr uint64_t kSplitFrom = 128_MiB;  // below, waking a helper costs more than it saves
constexpr uint64_t kSmallestPart = 32_MiB;
constexpr uint64_t kPartsPerScan = 64;  // enough that populated and empty stretches spread evenly
constexpr uint64_t kHugePage = 2_MiB;

/// Moves the kernel's answer to `found` and zeroes it. KERNEL: an ioctl that fails does not say how many
/// regions it had written; none ends at address 0, so the zeroed scratch tells.
size_t take_regions(std::span<uapi::PageRegion> scratch, PageRegions& found) {
  size_t n = 0;
  for (; n < scratch.size() && scratch[n].end != 0; n++) {
    append_region(found, scratch[n]);
    scratch[n] = {};
  }
  return n;
}

Error scan_error(int err, AddressRange range) {
  Error error = fail_errno("PAGEMAP_SCAN", fmt::format("range {}", range), err);
  if (err != EPERM) return error;
  error.kind = ErrorKind::kRetry;
  error.remedy = "a mapping there is new or was replaced: read the layout and track it";
  return error;
}

uint64_t categories_of(PagemapEntry entry) {
  if (entry.guard()) return uapi::kPageIsGuard;
  if (!entry.populated()) return 0;
  return (entry.present() ? uapi::kPageIsPresent : uapi::kPageIsSwapped) |
         (entry.file() ? uapi::kPageIsFile : 0);
}

bool probe_guards(int pagemap_fd) {
  uapi::PmScanArg arg{};
  arg.size = sizeof arg;
  uapi::PageRegion region{};
  arg.vec = reinterpret_cast<uint64_t>(&region);
  arg.vec_len = 1;
  arg.category_mask = uapi::kPageIsGuard;
  arg.return_mask = uapi::kPageIsGuard;
  return ::ioctl(pagemap_fd, uapi::kPagemapScan, &arg) >= 0;
}

}  // namespace

void append_region(PageRegions& list, const uapi::PageRegion& region) {
  if (!list.empty() && list.back().end == region.start && list.back().categories == region.categories) {
    list.back().end = region.end;
  } else {
    list.push_back(region);
  }
}

Status scan_pagemap(int pagemap_fd, AddressRange range, const ScanQuery& query,
                    std::span<uapi::PageRegion> scratch, PageRegions& found) {
  uapi::PmScanArg arg{};
  arg.size = sizeof arg;
  arg.flags = query.flags;
  arg.end = range.end.value();
  arg.vec = reinterpret_cast<uint64_t>(scratch.data());
  arg.vec_len = scratch.size();
  arg.category_inverted = query.inverted;
  arg.category_mask = query.all;
  arg.category_anyof_mask = query.any;
  arg.return_mask = query.report;
  for (uint64_t at = range.start.value(); at < arg.end;) {
    arg.start = at;
    const int rc = ::ioctl(pagemap_fd, uapi::kPagemapScan, &arg);
    const int err = errno;
    if (rc < 0 && err == ENOTTY && query.flags == 0) return scan_by_reading(pagemap_fd, range, query, found);
    const size_t taken = take_regions(scratch, found);
    if (rc < 0) return scan_error(err, range);
    // KERNEL: walk_end may be left over from an inner step of a walk that went on to the end, so it is
    // trusted only when the answer filled the scratch; what was reported lies behind us in any case.
    if (taken < scratch.size()) break;
    at = std::max(arg.walk_end, found.back().end);
  }
  return {};
}

Status scan_by_reading(int pagemap_fd, AddressRange range, const ScanQuery& query, PageRegions& found) {
  std::array<uint64_t, 512> scratch;
  for (RemoteAddr at = range.start; at < range.end;) {
    for (const uint64_t entry : TRY(read_pagemap(pagemap_fd, at, range.end, scratch))) {
      const uint64_t categories = categories_of(PagemapEntry(entry));
      const uint64_t judged = categories ^ query.inverted;
      const bool matches = (judged & query.all) == query.all && (query.any == 0 || (judged & query.any) != 0);
      if (matches) append_region(found, {at.value(), (at + kPageSize).value(), categories & query.report});
      at = at + kPageSize;
    }
  }
  return {};
}

Result<PageScanner> PageScanner::create(pid_t pid, unsigned threads) {
  const std::string path = fmt::format("/proc/{}/pagemap", pid);
  PageScanner scanner;
  scanner.pagemap_ = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!scanner.pagemap_.valid()) {
    Error error = fail_errno("open", path);
    if (error.err == ENOENT) error.kind = ErrorKind::kTargetGone;
    return error;
  }
  scanner.knows_guards_ = probe_guards(scanner.pagemap_.get());
  scanner.scratch_.assign(std::max(1u, threads), std::vector<uapi::PageRegion>(kScratchRegions));
  scanner.pool_ = std::make_unique<HelperPool>(static_cast<unsigned>(scanner.scratch_.size()) - 1);
  return scanner;
}

Status PageScanner::scan(AddressRange range, const ScanQuery& query, PageRegions& found) {
  if (pool_->size() > 1 && range.size() >= kSplitFrom) return scan_in_parts(range, query, found);
  return scan_pagemap(pagemap_.get(), range, query, scratch_[0], found);
}

Status PageScanner::scan_in_parts(AddressRange range, const ScanQuery& query, PageRegions& found) {
  // Whole huge pages only: write-protecting a piece of one would split it.
  const uint64_t step = std::max(kSmallestPart, range.size() / kPartsPerScan) & ~(kHugePage - 1);
  const uint64_t base = range.start.value() & ~(kHugePage - 1);
  const size_t count = (range.end.value() - base + step - 1) / step;
  if (parts_.size() < count) parts_.resize(count);
  std::atomic<size_t> next = 0;
  pool_->run([&](unsigned thread) {
    for (size_t i = next++; i < count; i = next++) {
      const AddressRange part = intersect(range, range_of(base + i * step, base + (i + 1) * step));
      parts_[i].found.clear();
      parts_[i].status = scan_pagemap(pagemap_.get(), part, query, scratch_[thread], parts_[i].found);
    }
  });
  Status first;
  for (size_t i = 0; i < count; i++) {
    for (const uapi::PageRegion& region : parts_[i].found) append_region(found, region);
    if (first.ok() && !parts_[i].status.ok()) first = std::move(parts_[i].status);
  }
  return first;
}

}  // namespace godwit::uffd
