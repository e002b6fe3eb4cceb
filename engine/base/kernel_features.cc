#include "engine/base/kernel_features.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/missing_uapi.h"
#include "engine/base/units.h"

namespace godwit {
namespace {

void probe_uffd(KernelFeatures& found) {
  const Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd.valid()) return;
  uffdio_api api{UFFD_API, 0, 0};
  found.uffd = ::ioctl(fd.get(), UFFDIO_API, &api) == 0;
  found.uffd_wp_async = (api.features & UFFD_FEATURE_WP_ASYNC) != 0;
  found.uffd_wp_shmem = (api.features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0;
}

/// A page of our own is protected, and nobody writes to it.
bool probe_uffd_wp_sync() {
  const Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  uffdio_api api{UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
  if (!fd.valid() || !pagemap.valid() || ::ioctl(fd.get(), UFFDIO_API, &api) != 0) return false;
  void* page =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (page == MAP_FAILED) return false;
  const uffdio_range range{reinterpret_cast<uint64_t>(page), kPageSize};
  uffdio_register registered{range, UFFDIO_REGISTER_MODE_WP, 0};
  uffdio_writeprotect protect{range, UFFDIO_WRITEPROTECT_MODE_WP};
  constexpr uint64_t kShown = uint64_t{1} << 57;
  uint64_t entry = 0;
  const bool shown = ::ioctl(fd.get(), UFFDIO_REGISTER, &registered) == 0 &&
                     ::ioctl(fd.get(), UFFDIO_WRITEPROTECT, &protect) == 0 &&
                     ::pread(pagemap.get(), &entry, sizeof entry,
                             static_cast<off_t>(range.start / kPageSize * sizeof entry)) == sizeof entry &&
                     (entry & kShown) != 0;
  ::munmap(page, kPageSize);
  return shown;
}

void probe_pagemap_scan(KernelFeatures& found) {
  const Fd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  uapi::PageRegion region{};
  uapi::PmScanArg arg{};
  arg.size = sizeof arg;
  arg.start = page_floor(reinterpret_cast<uint64_t>(&region));
  arg.end = arg.start + kPageSize;
  arg.vec = reinterpret_cast<uint64_t>(&region);
  arg.vec_len = 1;
  arg.category_mask = uapi::kPageIsPresent;
  arg.return_mask = uapi::kPageIsPresent;
  found.pagemap_scan = fd.valid() && ::ioctl(fd.get(), uapi::kPagemapScan, &arg) == 1;
}

void probe_descriptors(KernelFeatures& found) {
  const pid_t self = ::getpid();
  const Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, self, 0)));
  const Fd some(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Fd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), some.get(), 0)));
  found.pidfd_getfd = copy.valid();
  found.kcmp = ::syscall(SYS_kcmp, self, self, KCMP_FILE, some.get(), some.get()) == 0;
  io_uring_params params{};
  const Fd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 2, &params)));
  found.io_uring = ring.valid();
}

/// Waits to be seized, or for the end of the engine.
/// ORDER: our end of the lifeline is closed first, or this child would keep itself alive.
[[noreturn]] void wait_for_tracer(int lifeline, int engine_end) {
  ::close(engine_end);
  char nothing;
  while (::read(lifeline, &nothing, 1) != 0) {
  }
  ::_exit(0);
}

/// A child is stopped and asked for its rseq area. SAFETY: an engine that dies in the middle leaves no child:
/// until the seize the lifeline ends it, from then on the kernel does.
bool probe_rseq_query() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return false;
  Fd lifeline(ends[0]);
  Fd engine_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return false;
  if (child == 0) wait_for_tracer(lifeline.get(), engine_end.get());
  int status = 0;
  uint64_t configuration[3]{};
  bool known = false;
  if (::ptrace(PTRACE_SEIZE, child, nullptr, PTRACE_O_EXITKILL) == 0 &&
      ::ptrace(PTRACE_INTERRUPT, child, nullptr, nullptr) == 0 && ::waitpid(child, &status, 0) == child &&
      WIFSTOPPED(status)) {
    const auto request = static_cast<__ptrace_request>(uapi::kPtraceGetRseqConfiguration);
    known = ::ptrace(request, child, sizeof configuration, configuration) > 0;
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return known;
}

bool probe_guard_regions() {
  void* page = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  const bool works = ::madvise(page, kPageSize, uapi::kMadvGuardInstall) == 0;
  ::munmap(page, kPageSize);
  return works;
}

KernelFeatures probe() {
  KernelFeatures found;
  probe_uffd(found);
  found.uffd_wp_sync = probe_uffd_wp_sync();
  probe_pagemap_scan(found);
  probe_descriptors(found);
  found.time_namespace = ::access("/proc/self/ns/time", F_OK) == 0;
  unsigned size = 0;
  found.checkpoint_restore = ::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) == 0 && size > 0;
  found.timer_restore_ids = ::prctl(uapi::kPrTimerCreateRestoreIds, 2, 0, 0, 0) >= 0;
  found.rseq_query = probe_rseq_query();
  found.guard_regions = probe_guard_regions();
  return found;
}

}  // namespace

const KernelFeatures& kernel_features() {
  static const KernelFeatures features = probe();
  return features;
}

bool makes_huge_pages_unasked() {
  const std::filesystem::path settings = "/sys/kernel/mm/transparent_hugepage";
  const auto always = [](const std::filesystem::path& file) {
    const auto text = read_file(file);
    return !text.ok() || text.value().find("[always]") != std::string::npos;
  };
  std::error_code error;
  // A kernel without huge pages has none of this.
  if (!std::filesystem::exists(settings, error)) return bool(error);
  if (always(settings / "enabled")) return true;
  for (const auto& size : std::filesystem::directory_iterator(settings, error)) {
    const auto enabled = size.path() / "enabled";
    if (std::filesystem::exists(enabled) && always(enabled)) return true;
  }
  return bool(error);
}

std::vector<KernelFeature> KernelFeatures::list() const {
  return {
      {"uffd", "a tracker inside the target", uffd, true, "nothing can be tracked"},
      {"uffd-wp-async", "see writes without a handler", uffd_wp_async, false,
       "a first write to a page waits for a handler (uffd-wp-sync)"},
      {"uffd-wp-sync", "see writes by a handler, where uffd-wp-async or pagemap-scan is missing",
       uffd_wp_sync, !tracks_async(), "there is no other tracker: nothing can be tracked"},
      {"uffd-wp-shmem", "see writes to shared memory", uffd_wp_shmem, false,
       "shared memory is compared by hash"},
      {"pagemap-scan", "collect and re-arm dirty pages in one call", pagemap_scan, false,
       "page tables are read page by page (uffd-wp-sync)"},
      {"pidfd-getfd", "read sockets and pipes of the target", pidfd_getfd, true,
       "descriptors cannot be captured"},
      {"io-uring", "move the stream", io_uring, true, "no transport"},
      {"kcmp", "find shared open file descriptions", kcmp, true, "descriptors cannot be captured"},
      {"time-namespace", "CLOCK_MONOTONIC goes on from where it was", time_namespace, true,
       "clocks would jump"},
      {"checkpoint-restore", "PR_SET_MM_MAP and clone3 set_tid", checkpoint_restore, true,
       "nothing can be rebuilt"},
      {"timer-restore-ids", "POSIX timers keep their ids", timer_restore_ids, false,
       "timers are created until the id fits"},
      {"rseq-query", "read the rseq area of a thread", rseq_query, true, "threads cannot be captured"},
      {"guard-regions", "MADV_GUARD_INSTALL", guard_regions, false, "targets cannot have guard regions"},
  };
}

}  // namespace godwit
