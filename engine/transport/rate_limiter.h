// A bandwidth limit in bytes per second, shared by the channels of a session and changed while they send.
// TokenBucket is the pure core, without a clock; RateLimiter makes threads wait. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "engine/base/clock.h"
#include "engine/base/result.h"

namespace godwit::transport {

class TokenBucket {
 public:
  /// 0 is no limit. What was saved up under the old rate is kept up to the new burst.
  void set_rate(uint64_t bytes_per_second);
  [[nodiscard]] uint64_t rate() const { return rate_; }

  /// Takes `bytes` if the bucket is not in debt and returns 0, else takes nothing and returns how long to
  /// wait. A taker may run into debt, so pieces of any size pass; the next one pays. `now` never runs
  /// backwards.
  Nanos take(uint64_t bytes, Nanos now);

 private:
  void refill(Nanos now);

  uint64_t rate_ = 0;
  double level_ = 0;  ///< bytes; negative is debt
  Nanos last_{0};
};

class RateLimiter {
 public:
  void set_rate(uint64_t bytes_per_second);  ///< wakes those who wait, so that a raised limit holds at once
  [[nodiscard]] uint64_t rate() const { return rate_.load(std::memory_order_relaxed); }

  /// Blocks until `bytes` may be sent; at once without a limit. False when `stop` was set: see wake().
  bool acquire(uint64_t bytes, const std::atomic<bool>& stop);
  /// Makes every waiting acquire() look at its `stop` again.
  void wake();

 private:
  std::atomic<uint64_t> rate_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  TokenBucket bucket_;
};

}  // namespace godwit::transport
