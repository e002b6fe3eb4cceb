// What a person may say and ask while a migration runs, and what the migration makes of it: live limits, the
// wishes (cancel, pause, freeze now), the statistics. Place in the pipeline: between the control socket's
// thread and the migrating thread; both sides are marked. Any thread may call anything.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>

#include "engine/base/result.h"
#include "engine/migration/job.h"
#include "engine/migration/statistics.h"

namespace godwit::migration {

/// The connection as this sees it. Every function may be called by any thread.
struct LinkControl {
  std::function<uint64_t()> bytes_sent;
  std::function<void(uint64_t)> set_bandwidth;
  std::function<void()> cut;
  std::function<uint64_t()> postcopy_left;  ///< bytes; none while the process runs here
};

class Control {
 public:
  /// `bandwidth`: nothing for a job that has none (a file). `signalled`: a Ctrl-C, or null.
  Control(pid_t pid, const Limits& limits, std::optional<uint64_t> bandwidth,
          const std::atomic<bool>* signalled);
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  // ---- the migrating thread
  [[nodiscard]] Limits limits() const;
  /// Nothing while paused: who sends nothing has no reason to slow the process.
  [[nodiscard]] ThrottleLimits throttle() const;
  [[nodiscard]] bool freeze_now() const;
  [[nodiscard]] bool switch_now() const;
  /// Errors: Cancelled.
  Status check();
  /// Returns at once unless paused; then when resumed, cancelled or told to freeze. Every second `alive` is
  /// called, so that the peer knows that we live. Errors: Cancelled, and those of `alive`.
  Status wait_while_paused(const std::function<Status()>& alive);
  /// From here on nobody can cancel. Errors: Cancelled, when somebody has.
  Status begin_commit();
  /// ORDER: taken away (with {}) before the link goes.
  void set_link(LinkControl link);
  /// Both ends know how to.
  void allow_postcopy();
  void publish(const std::function<void(Statistics&)>& change);
  /// A link that was cut because of a cancel fails in many ways: what was meant.
  [[nodiscard]] Error explain(Error error) const;

  // ---- the control socket's thread
  [[nodiscard]] Statistics statistics() const;
  [[nodiscard]] uint64_t bandwidth() const;
  /// Takes effect at once, the limits of a decision at the next one. Errors: Usage, with nothing changed.
  Status set(const Changes& changes);
  /// Errors: Refused once COMMIT has left.
  Status cancel();
  Status pause();
  Status resume();
  Status freeze_soon();
  /// Errors: Refused, also when the destination cannot.
  Status switch_soon();
  /// To be called now and then: a signal becomes a cancel, and a cancel that the migrating thread does not
  /// see, because it is busy sending, cuts the link. So does a timeout in the bulk round.
  void look_around(Nanos now);

 private:
  enum class End : uint8_t { kNone, kCancelled, kOutOfTime };
  [[nodiscard]] Error end_error(End end) const;
  void apply_bandwidth();  // with the lock
  Status refuse_late(const char* wish) const;

  const pid_t pid_;
  const std::atomic<bool>* const signalled_;
  const bool has_bandwidth_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Limits limits_;
  uint64_t bandwidth_ = 0;
  LinkControl link_;
  Statistics statistics_;
  bool paused_ = false, freeze_now_ = false, switch_now_ = false, committed_ = false;
  bool can_switch_ = false;
  End end_ = End::kNone;
  Nanos ended_at_{};
  bool noticed_ = false;  ///< the migrating thread ends in order
  bool cut_ = false;
};

}  // namespace godwit::migration
