// Reads what a freeze interrupted, and when that would have ended. Place in the pipeline: made before the
// first freeze, asked inside each, beside the registers. A thread whose call returned -ERESTART_RESTARTBLOCK
// (-516) is a relative sleep, futex wait or poll: the time that is left of it stands only in the kernel's
// task_struct. Calls that return -EINTR instead (epoll_wait) leave nothing behind, so a second program notes
// the timer that such a thread gives up when the freeze wakes it. Thread: one at a time.
//
// Times are absolute, in this host's clocks *outside* of any time namespace: what is left is the time minus
// the clock as a process of the initial time namespace reads it.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/model/remote_addr.h"

namespace godwit::ebpf {

enum class RestartKind : uint8_t {
  kInvalid = 0,
  kNone,            ///< nothing to restart (do_no_restart_syscall)
  kNanosleep,       ///< nanosleep, clock_nanosleep on an ordinary clock
  kCpuNanosleep,    ///< clock_nanosleep on a process or thread CPU clock: `expires` is of that clock
  kAlarmNanosleep,  ///< clock_nanosleep on an alarm clock: `expires` is of that clock
  kFutexWait,
  kPoll,
  kUnnamed,  ///< the kernel hides or does not have the names: the number of the interrupted call says which
             ///< it is
};

struct RestartBlock {
  struct Nanosleep {
    clockid_t clock = 0;
    int type = 0;  ///< 0: no rmtp; 1: native timespec; 2: 32-bit
    Nanos expires{};
    RemoteAddr rmtp;  ///< where the thread wants the remaining time
  };
  struct FutexWait {
    RemoteAddr uaddr;
    uint32_t value = 0;
    uint32_t flags = 0;  ///< the kernel's own FLAGS_*, not those of futex(2)
    uint32_t bitset = 0;
    Nanos time{};       ///< CLOCK_MONOTONIC (a relative timeout has no other)
    RemoteAddr uaddr2;  ///< of FUTEX_WAIT_REQUEUE_PI
  };
  struct Poll {
    RemoteAddr ufds;
    int count = 0;
    std::optional<Nanos> end;  ///< CLOCK_MONOTONIC; nothing when it waits for ever
  };

  /// The timer of the sleep out of which a tracer's interrupt drove the thread last.
  struct Timer {
    Nanos at{};  ///< when that was, CLOCK_MONOTONIC: older than the freeze means of an earlier one
    clockid_t clock = 0;
    Nanos expires{};
  };

  pid_t tid = 0;
  RestartKind kind = RestartKind::kInvalid;
  uint64_t function = 0;  ///< kernel address that `kind` was named by
  /// One union in the kernel: only the one that `kind` (or the call's number) names means anything.
  Nanosleep nanosleep;
  FutexWait futex;
  Poll poll;
  std::optional<Timer> timer;
};

class RestartReader {
 public:
  /// Loads the programs for the threads of `pid` (a number of this process's pid namespace), begins to note
  /// their timers (only stops by a tracer are noted) and learns the kernel's names: a tenth of a second, so
  /// before the freeze. Errors: TargetGone; Unsupported with the reason when BPF is not permitted or the
  /// kernel has no BTF; the caller can go on without and let such calls begin anew.
  static Result<RestartReader> create(pid_t pid);

  /// One block for each of `tids`, in their order; all are threads of that process, stopped. Tens of
  /// microseconds. Errors: TargetGone when one of them does not exist (any more), System.
  Result<std::vector<RestartBlock>> read(std::span<const pid_t> tids);

  RestartReader(RestartReader&&) noexcept;
  RestartReader& operator=(RestartReader&&) noexcept;
  ~RestartReader();

 private:
  struct Loaded;
  explicit RestartReader(std::unique_ptr<Loaded> loaded);

  std::unique_ptr<Loaded> loaded_;
};

}  // namespace godwit::ebpf
