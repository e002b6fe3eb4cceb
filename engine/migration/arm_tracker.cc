#include "engine/migration/arm_tracker.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <thread>

#include "engine/base/fault_point.h"
#include "engine/tracee/injector.h"

namespace godwit::migration {
namespace {

/// linux/userfaultfd.h. KERNEL: an unprivileged target may make no other kind; asynchronous write-protection
/// is resolved by the kernel itself, so that it sees writes of the kernel all the same.
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

}  // namespace

Result<std::unique_ptr<uffd::WpTracker>> arm_tracker(const tracee::Process& process,
                                                     InterruptedCalls& interrupted) {
  Nanos begin{};
  auto frozen = TRY(freeze_patiently(process, begin));
  TRY(interrupted.look(frozen, begin));
  auto injector = TRY(tracee::Injector::create(frozen));
  tracee::Batch make;
  const size_t made =
      make.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | kUserModeOnly}, "userfaultfd in the target");
  TRY(injector->run(process.pid(), make));
  const int number = static_cast<int>(make.result(made));
  // ORDER: whatever fails from here on, the number inside is closed before it is told.
  Status undisturbed = fault_point("armed-inside");
  Result<Fd> taken = process.pidfd().get_fd(number);
  tracee::Batch close;
  close.call(SYS_close, {number}, "close the target's userfaultfd");
  TRY(injector->run(process.pid(), close));
  TRY(injector->finish());
  TRY(frozen.finish());
  TRY(std::move(undisturbed));

  return std::make_unique<uffd::WpTracker>(
      TRY(uffd::WpTracker::create(process.pid(), TRY(std::move(taken)))));
}

}  // namespace godwit::migration
