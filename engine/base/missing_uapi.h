// Kernel interfaces newer than Debian 12's headers. Each constant is copied from the uapi header of
// Linux 6.18 named beside it; nothing here decides whether the running kernel has the feature:
// kernel_features does, by probing.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

// linux/userfaultfd.h
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

// linux/fs.h: PAGEMAP_SCAN (6.7)
namespace godwit::uapi {

struct PageRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};

struct PmScanArg {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};

constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
constexpr uint64_t kPmScanWpMatching = 1;
constexpr uint64_t kPmScanCheckWpAsync = 2;
constexpr uint64_t kPageIsWpAllowed = 1 << 0;
constexpr uint64_t kPageIsWritten = 1 << 1;
constexpr uint64_t kPageIsFile = 1 << 2;
constexpr uint64_t kPageIsPresent = 1 << 3;
constexpr uint64_t kPageIsSwapped = 1 << 4;
constexpr uint64_t kPageIsPfnZero = 1 << 5;
constexpr uint64_t kPageIsHuge = 1 << 6;
constexpr uint64_t kPageIsSoftDirty = 1 << 7;
constexpr uint64_t kPageIsGuard = 1 << 8;

// asm-generic/mman-common.h (6.13)
constexpr int kMadvGuardInstall = 102;
constexpr int kMadvGuardRemove = 103;

// asm/prctl.h
constexpr int kArchMapVdso64 = 0x2003;
// linux/prctl.h (6.15): timers keep their ids when created
constexpr int kPrTimerCreateRestoreIds = 77;
// linux/ptrace.h
constexpr int kPtraceGetRseqConfiguration = 0x420f;
constexpr int kPtraceGetSyscallUserDispatch = 0x4211;

}  // namespace godwit::uapi
