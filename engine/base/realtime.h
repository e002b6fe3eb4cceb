// A thread at real-time priority for the length of a scope: a freeze must not lose its CPU in the middle.
#pragma once

#include <sched.h>

#include <optional>

namespace godwit {

/// SCHED_FIFO 50 on the calling thread, which must also be the one that destroys it. Children do not inherit
/// it. Without the privilege nothing happens: the freeze is then as fast as the scheduler lets it be.
class RealtimeBoost {
 public:
  RealtimeBoost() : policy_(::sched_getscheduler(0)) {
    if (policy_ < 0 || ::sched_getparam(0, &parameter_) != 0) return;
    const sched_param boosted{.sched_priority = kPriority};
    active_ = ::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &boosted) == 0;
  }
  ~RealtimeBoost() {
    if (active_) ::sched_setscheduler(0, policy_, &parameter_);
  }
  RealtimeBoost(const RealtimeBoost&) = delete;
  RealtimeBoost& operator=(const RealtimeBoost&) = delete;

  [[nodiscard]] bool active() const { return active_; }

 private:
  static constexpr int kPriority =
      50;                     // above ordinary work, below the kernel's own migration and watchdog threads
  int policy_ = SCHED_OTHER;  // with SCHED_RESET_ON_FORK if it was set
  sched_param parameter_{};
  bool active_ = false;
};

/// Boosts this thread, or no longer, as `wanted` says.
inline void boost_if(bool wanted, std::optional<RealtimeBoost>& boost) {
  if (wanted && !boost) boost.emplace();
  if (!wanted) boost.reset();
}

}  // namespace godwit
