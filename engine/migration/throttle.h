// Slows a process down that writes faster than it can be sent, by letting it, or only the threads that write,
// stand for a part of the time. Each stand is a freeze of its own with all of a freeze's repairs: interrupted
// sleeps and waits end when they would have ended, and no call returns for it.
//
// Place in the pipeline: beside the rounds; precopy says how far it is closed. Thread: one of its own, which
// is the tracer of the stands. If this engine dies, the kernel lets every thread go: so the throttle is gone
// whenever the migration is, however it ends.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "engine/migration/convergence.h"
#include "engine/migration/interrupted_calls.h"
#include "engine/migration/writer_budget.h"
#include "engine/tracee/frozen.h"

namespace godwit::migration {

class Throttle {
 public:
  /// All of it stands once in such a period.
  static constexpr Nanos kPeriod = std::chrono::milliseconds(50);

  /// `limits` are asked for in each period, from the throttle's thread. `calls` belongs to whoever may
  /// freeze: this, unless a Hold exists. Both, and `process`, must outlive it.
  Throttle(const tracee::Process& process, InterruptedCalls& calls, std::function<ThrottleLimits()> limits);
  /// Lets everything go and ends the thread.
  ~Throttle();
  Throttle(const Throttle&) = delete;
  Throttle& operator=(const Throttle&) = delete;

  void set(ThrottleLevel level);

  /// While it lives no thread of the process is held, so that another thread of this engine may freeze it.
  class Hold {
   public:
    explicit Hold(Throttle* throttle);  ///< null: nothing to hold
    Hold(Hold&& other) noexcept : throttle_(std::exchange(other.throttle_, nullptr)) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold();

   private:
    Throttle* throttle_;
  };

 private:
  /// A thread that is watched for what it writes.
  struct Writer {
    WriterBudget budget;
    Nanos due{};          ///< the next look, or the end of its stand
    Nanos stood{};        ///< since the last look
    Nanos stand_began{};  ///< while it stands
    std::optional<tracee::Frozen> stand;
  };

  void run();
  void turn(ThrottleLevel level, const ThrottleLimits& limits);
  void stand_all(Nanos time);
  void watch_writers(Nanos until, uint64_t limit);
  void list_writers(Nanos now);
  bool look_at(pid_t tid, Writer& writer, Nanos now, uint64_t limit);
  void let_go(Writer& writer);
  void let_go_all();
  /// False when the throttle must let go now.
  bool wait_until(Nanos time);

  const tracee::Process& process_;
  InterruptedCalls& calls_;
  const std::function<ThrottleLimits()> limits_;
  std::map<pid_t, Writer> writers_;  ///< of the throttle's thread

  std::mutex mutex_;
  std::condition_variable changed_;
  ThrottleLevel level_;
  unsigned holds_ = 0;
  bool busy_ = false;  ///< threads may be held
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace godwit::migration
