// How much the peer of a TCP connection would take at once: its advertised window. Any thread.
#pragma once

#include <cstdint>
#include <optional>

namespace godwit::transport {

/// Bytes. Nothing for another kind of socket, and from kernels that do not tell (before 5.4).
std::optional<uint64_t> peer_window(int socket);

}  // namespace godwit::transport
