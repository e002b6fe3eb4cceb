// One probe of everything this engine asks of the kernel, made once per process by trying each feature, never
// by reading a version or a header. `godwit probe` prints it; docs/kernel-support.md has a row for each.
#pragma once

#include <string>
#include <vector>

namespace godwit {

struct KernelFeature {
  std::string name;    ///< "uffd-wp-async"
  std::string needed;  ///< what godwit does with it
  bool available;
  bool required;        ///< without it nothing can be migrated
  std::string without;  ///< what happens without it
};

struct KernelFeatures {
  bool uffd = false;
  bool uffd_wp_async = false;  ///< UFFD_FEATURE_WP_ASYNC (6.7)
  bool uffd_wp_sync = false;   ///< write-protection that pagemap shows (5.14)
  bool uffd_wp_shmem = false;  ///< UFFD_FEATURE_WP_HUGETLBFS_SHMEM (5.19)
  bool pagemap_scan = false;   ///< PAGEMAP_SCAN (6.7)
  bool pidfd_getfd = false;    ///< 5.6
  bool io_uring = false;
  bool kcmp = false;                ///< CONFIG_KCMP
  bool time_namespace = false;      ///< CONFIG_TIME_NS
  bool checkpoint_restore = false;  ///< CONFIG_CHECKPOINT_RESTORE: PR_SET_MM_MAP, set_tid
  bool timer_restore_ids = false;   ///< PR_TIMER_CREATE_RESTORE_IDS (6.15)
  bool rseq_query = false;          ///< PTRACE_GET_RSEQ_CONFIGURATION (5.13)
  bool guard_regions = false;       ///< MADV_GUARD_INSTALL (6.13)

  /// Writes can be seen without a handler, and collected in one call.
  [[nodiscard]] bool tracks_async() const { return uffd_wp_async && pagemap_scan; }
  [[nodiscard]] std::vector<KernelFeature> list() const;
};

/// Whether page faults of private anonymous memory make huge pages of any size where nobody asked for them
/// (MADV_HUGEPAGE). A setting that anybody may change; unknown counts as yes. Some files are read.
bool makes_huge_pages_unasked();

/// Thread-safe; the first call costs about a millisecond.
const KernelFeatures& kernel_features();

}  // namespace godwit
