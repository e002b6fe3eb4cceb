#include "engine/migration/pinned_writes.h"

#include <sys/syscall.h>

#include <algorithm>
#include <array>

#include "engine/base/files.h"

namespace godwit::migration {
namespace {

/// The calls that pin pages of their process and write to them, asleep in between. write(): to /proc/PID/mem.
constexpr std::array kPinning = {SYS_read,
                                 SYS_pread64,
                                 SYS_readv,
                                 SYS_preadv,
                                 SYS_preadv2,
                                 SYS_write,
                                 SYS_pwrite64,
                                 SYS_writev,
                                 SYS_pwritev,
                                 SYS_pwritev2,
                                 SYS_ioctl,
                                 SYS_ptrace,
                                 SYS_io_submit,
                                 SYS_io_getevents,
                                 SYS_io_pgetevents,
                                 SYS_io_uring_enter,
                                 SYS_io_uring_register,
                                 SYS_process_vm_writev};

/// KERNEL: the first number that 6.18 does not have; nothing is known of the calls from here on.
constexpr long kFirstUnknown = 470;

bool may_pin(long number) {
  return number >= kFirstUnknown || std::find(kPinning.begin(), kPinning.end(), number) != kPinning.end();
}

}  // namespace

Status await_pinned_writes(const tracee::Process& process, InterruptedCalls& interrupted) {
  const auto gone = [](const Error& error) { return error.kind == ErrorKind::kTargetGone; };
  // A thread that is born meanwhile has been in no call.
  for (const pid_t tid : TRY(process.threads())) {
    auto call = process.sleeping_call(tid);
    if (!call.ok() && gone(call.error())) continue;
    if (call.ok() && call->has_value() && !may_pin(**call)) continue;
    const Nanos begin = monotonic_now();
    auto still = tracee::Frozen::freeze_thread(process, tid);
    if (!still.ok() && gone(still.error()) && !process.pidfd().exited()) continue;
    if (!still.ok()) return still.take_error();
    TRY(interrupted.look(*still, begin));
    TRY(still->finish());
  }
  return {};
}

Result<bool> has_unseen_writers(const tracee::Process& process) {
  if (TRY(process.pinned_memory()) != 0) return true;
  const std::string maps = TRY(read_file(process.path("maps")));
  return maps.find("anon_inode:[io_uring]") != std::string::npos || maps.find("/[aio]") != std::string::npos;
}

}  // namespace godwit::migration
