// Calls in flight across the freezes of one pre-copy: when each would have ended, asked of the kernel that
// alone knows. Place in the pipeline: made before the first freeze, looks right after each. Thread: the
// tracer's.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "ebpf/restart_reader.h"
#include "engine/migration/clock_sync.h"
#include "engine/state/context.h"
#include "engine/tracee/frozen.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

class InterruptedCalls {
 public:
  /// A tenth of a second while the process runs. Without the privilege for BPF it works all the same, see
  /// blind().
  static InterruptedCalls create(const tracee::Process& process);

  /// Right after a freeze that began at `since` (CLOCK_MONOTONIC), before anything else runs in the process.
  /// An epoll_wait() that the freeze made the thread repeat gets what is left of its timeout, in this process
  /// as in the one to come. One read of some microseconds if any thread is in such a call, nothing otherwise.
  Status look(tracee::Frozen& frozen, Nanos since);

  /// As of the last look.
  [[nodiscard]] const std::map<pid_t, state::InterruptedCall>& calls() const { return calls_; }
  /// Why the kernel cannot be asked, so that relative waits begin their time anew; empty if it can.
  [[nodiscard]] const std::string& blind() const { return blind_; }

 private:
  /// Where a thread stood in a call whose number could still be seen.
  struct Site {
    unsigned long long number = 0, rip = 0, rsp = 0;
  };

  /// An epoll_wait() as a freeze let it go on.
  struct Shortened {
    int millis = 0;
    Nanos end{};  ///< by the kernel's clock; the timeout is rounded up
  };

  InterruptedCalls(ClockOffsets process, ClockOffsets own) : process_(process), own_(own) {}
  void remember(const tracee::FrozenThread& thread);
  [[nodiscard]] long number_of(const tracee::FrozenThread& thread, const ebpf::RestartBlock* block) const;
  [[nodiscard]] std::optional<wire::TimedWait> wait_of(const tracee::FrozenThread& thread,
                                                       const ebpf::RestartBlock& block, long number) const;
  [[nodiscard]] Nanos end_of(const tracee::FrozenThread& thread, Nanos timer) const;
  Status shorten(tracee::Frozen& frozen, const tracee::FrozenThread& thread, const ebpf::RestartBlock& block,
                 Nanos since);
  [[nodiscard]] Nanos kernel_clock(clockid_t clock) const;

  ClockOffsets process_, own_;
  std::unique_ptr<ebpf::RestartReader> reader_;
  std::string blind_;
  std::map<pid_t, Site> sites_;
  std::map<pid_t, Shortened> shortened_;
  std::map<pid_t, state::InterruptedCall> calls_;
};

}  // namespace godwit::migration
