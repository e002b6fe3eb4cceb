#include "engine/migration/arm_tracker.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "ebpf/write_log.h"
#include "engine/base/fault_point.h"
#include "engine/base/kernel_features.h"
#include "engine/tracee/injector.h"
#include "uffd/sync_tracker.h"
#include "uffd/wp_tracker.h"

namespace godwit::migration {
namespace {

/// linux/userfaultfd.h. KERNEL: an unprivileged target may make no other kind; asynchronous write-protection
/// is resolved by the kernel itself, so that it sees writes of the kernel all the same. With a handler this
/// flag would make them fail instead: a read() into a clean page would be EFAULT.
constexpr int kUserModeOnly = 1;

/// For a thread that cannot stop at the moment: it waits for a disk, or for its vfork child.
constexpr Nanos kPatience = std::chrono::seconds(10);
constexpr Nanos kPause = std::chrono::milliseconds(20);

Result<tracee::Frozen> freeze_patiently(const tracee::Process& process, Nanos& begin) {
  const Nanos end = monotonic_now() + kPatience;
  for (;;) {
    begin = monotonic_now();
    auto frozen = tracee::Frozen::freeze(process);
    if (frozen.ok() || frozen.error().kind != ErrorKind::kRetry || begin > end) return frozen;
    std::this_thread::sleep_for(kPause);
  }
}

/// Its number inside.
Result<int> make_userfaultfd(tracee::Injector& injector, const tracee::Process& process, TrackerKind kind) {
  const int mode = kind == TrackerKind::kUffdSync ? 0 : kUserModeOnly;
  tracee::Batch make;
  const size_t made = make.call_may_fail(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | mode}, "userfaultfd");
  TRY(injector.run(process.pid(), make));
  const int64_t result = make.result(made);
  if (result >= 0) return static_cast<int>(result);
  Error error = fail_errno("userfaultfd in the target", fmt::format("pid {}", process.pid()),
                           static_cast<int>(-result));
  if (error.err == EPERM && kind == TrackerKind::kUffdSync)
    error.remedy =
        "the process lacks CAP_SYS_PTRACE: set the sysctl vm.unprivileged_userfaultfd to 1 until it has "
        "moved";
  return error;
}

Result<std::unique_ptr<DirtyTracker>> make_tracker(pid_t pid, TrackerKind kind, Fd uffd) {
  std::unique_ptr<DirtyTracker> tracker;
  if (kind == TrackerKind::kUffdSync)
    tracker = TRY(uffd::SyncTracker::create(pid, std::move(uffd)));
  else
    tracker = std::make_unique<uffd::WpTracker>(TRY(uffd::WpTracker::create(pid, std::move(uffd))));
  return tracker;
}

}  // namespace

std::string_view to_string(TrackerKind kind) {
  switch (kind) {
    case TrackerKind::kEbpf:
      return "ebpf";
    case TrackerKind::kUffd:
      return "uffd";
    case TrackerKind::kUffdSync:
      return "uffd-sync";
    default:
      return "auto";
  }
}

Result<TrackerKind> choose_tracker(TrackerKind wish, const KernelFeatures& kernel) {
  const auto lacks = [&](const char* remedy) {
    return fail(ErrorKind::kUnsupported, "choose a tracker", fmt::format("--tracker {}", to_string(wish)),
                remedy);
  };
  if (wish != TrackerKind::kUffdSync && kernel.tracks_async()) return TrackerKind::kUffd;
  if (wish == TrackerKind::kUffd || wish == TrackerKind::kEbpf)
    return lacks("this kernel has no UFFD_FEATURE_WP_ASYNC or no PAGEMAP_SCAN (Linux 6.7): take uffd-sync");
  if (kernel.uffd_wp_sync) return TrackerKind::kUffdSync;
  return lacks("this kernel has no userfaultfd write-protection that /proc/PID/pagemap shows (Linux 5.14)");
}

Result<TrackerKind> probe_tracker() {
  const TrackerKind marks = TRY(choose_tracker(TrackerKind::kAuto));
  const bool logs = marks == TrackerKind::kUffd && ebpf::FaultLog::create(::getpid()).ok();
  return logs ? TrackerKind::kEbpf : marks;
}

Result<std::unique_ptr<DirtyTracker>> arm_tracker(const tracee::Process& process, TrackerKind kind,
                                                  InterruptedCalls& interrupted) {
  Nanos begin{};
  auto frozen = TRY(freeze_patiently(process, begin));
  TRY(interrupted.look(frozen, begin));
  auto injector = TRY(tracee::Injector::create(frozen));
  const Result<int> made = make_userfaultfd(*injector, process, kind);
  if (!made.ok()) {
    TRY(injector->finish());
    TRY(frozen.finish());
    return made.error();
  }
  const int number = made.value();
  // ORDER: whatever fails from here on, the number inside is closed before it is told.
  Status undisturbed = fault_point("armed-inside");
  Result<Fd> taken = process.pidfd().get_fd(number);
  tracee::Batch close;
  close.call(SYS_close, {number}, "close the target's userfaultfd");
  TRY(injector->run(process.pid(), close));
  TRY(injector->finish());
  TRY(frozen.finish());
  TRY(std::move(undisturbed));
  return make_tracker(process.pid(), kind, TRY(std::move(taken)));
}

}  // namespace godwit::migration
