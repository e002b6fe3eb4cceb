#include "engine/transport/rate_limiter.h"

#include <algorithm>

namespace godwit::transport {

namespace {

/// What may be saved up while nobody sends: this long at the full rate.
constexpr double kBurstSeconds = 0.05;

}  // namespace

void TokenBucket::set_rate(uint64_t bytes_per_second) {
  rate_ = bytes_per_second;
  level_ = std::min(level_, static_cast<double>(rate_) * kBurstSeconds);
  if (rate_ == 0) level_ = 0;
}

void TokenBucket::refill(Nanos now) {
  const double seconds = to_seconds(now - last_);
  const auto rate = static_cast<double>(rate_);
  level_ = std::min(level_ + rate * seconds, rate * kBurstSeconds);
  last_ = now;
}

Nanos TokenBucket::take(uint64_t bytes, Nanos now) {
  if (rate_ == 0) {
    last_ = now;
    return Nanos(0);
  }
  refill(now);
  if (level_ < 0) {
    const double seconds = -level_ / static_cast<double>(rate_);
    return std::max(Nanos(1), from_seconds(seconds));
  }
  level_ -= static_cast<double>(bytes);
  return Nanos(0);
}

void RateLimiter::set_rate(uint64_t bytes_per_second) {
  {
    const std::lock_guard lock(mutex_);
    bucket_.set_rate(bytes_per_second);
    rate_.store(bytes_per_second, std::memory_order_relaxed);
  }
  changed_.notify_all();
}

void RateLimiter::wake() {
  // ORDER: the lock keeps the wake-up from falling between a waiter's look at `stop` and its wait.
  { const std::lock_guard lock(mutex_); }
  changed_.notify_all();
}

bool RateLimiter::acquire(uint64_t bytes, const std::atomic<bool>& stop) {
  if (rate() == 0) return !stop.load();
  std::unique_lock lock(mutex_);
  while (!stop.load()) {
    const Nanos wait = bucket_.take(bytes, monotonic_now());
    if (wait == Nanos(0)) return true;
    // One second bounds what a rate that changed from near zero could owe.
    changed_.wait_for(lock, std::min(wait, Nanos(std::chrono::seconds(1))));
  }
  return false;
}

}  // namespace godwit::transport
