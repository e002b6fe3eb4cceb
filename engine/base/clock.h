// Time as this engine measures it: CLOCK_MONOTONIC in nanoseconds.
#pragma once

#include <ctime>

#include <chrono>
#include <cstdint>

namespace godwit {

using Nanos = std::chrono::nanoseconds;

inline Nanos read_clock(clockid_t id) {
  timespec ts{};
  ::clock_gettime(id, &ts);
  return std::chrono::seconds(ts.tv_sec) + Nanos(ts.tv_nsec);
}
inline Nanos monotonic_now() {
  return read_clock(CLOCK_MONOTONIC);
}

inline timespec to_timespec(Nanos t) {
  return {static_cast<time_t>(t.count() / 1'000'000'000), static_cast<long>(t.count() % 1'000'000'000)};
}
inline int64_t to_micros(Nanos t) {
  return t.count() / 1000;
}
inline double to_seconds(Nanos t) {
  return std::chrono::duration<double>(t).count();
}
/// Toward zero; no more than 292 years.
inline Nanos from_seconds(double seconds) {
  return Nanos(static_cast<int64_t>(seconds * 1e9));
}

}  // namespace godwit
