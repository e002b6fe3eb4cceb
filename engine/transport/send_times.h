// What the sender of a TCP connection spent its time on, as the kernel counts it. Any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "engine/base/clock.h"

namespace godwit::transport {

/// Since the connection was made. KERNEL: counted in ticks of the timer, 1 to 10 ms.
struct SendTimes {
  Nanos busy{};              ///< there was something to send, or to be acknowledged
  Nanos limited_by_peer{};   ///< of it, the peer's window was full: it did not read
  uint64_t peer_window = 0;  ///< bytes that the peer would take at once, now
};

/// Nothing for another kind of socket, and from kernels that do not tell (before 5.4).
std::optional<SendTimes> send_times(int socket);

}  // namespace godwit::transport
