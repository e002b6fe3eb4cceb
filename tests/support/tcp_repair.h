// Takes a live TCP connection apart at one place and puts it together at another, by TCP_REPAIR: the peer
// notices nothing. Knows established connections only.
//
//   source: capture(socket) … close it, nothing is sent          destination: rebuild(snapshot) …
//   resume(socket)
//           or thaw(socket, snapshot): it goes on as if nothing happened
//
// Both need CAP_NET_ADMIN. Packets of the connection must be held away from the socket between capture and
// resume. Thread: any; rebuild() makes the socket in the network namespace of the calling thread.
#pragma once

#include <linux/tcp.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::test {

struct TcpSnapshot {
  sockaddr_storage local{};
  sockaddr_storage peer{};
  uint32_t send_sequence = 0;     ///< of the first byte of send_queue, which is the first not acknowledged
  uint32_t receive_sequence = 0;  ///< of the first byte of receive_queue, which is the first not read
  std::vector<std::byte> send_queue;
  size_t unsent = 0;  ///< bytes at the end of send_queue that never left
  std::vector<std::byte> receive_queue;
  uint32_t mss_clamp = 0;
  uint32_t timestamp = 0;  ///< opaque, see TCP_TIMESTAMP
  uint8_t options = 0;     ///< TCPI_OPT_*
  uint8_t send_scale = 0;
  uint8_t receive_scale = 0;
  tcp_repair_window window{};
  int send_buffer = 0;  ///< as getsockopt says
  int receive_buffer = 0;
  int no_delay = 0;
};

/// Leaves the socket in repair mode and mute: closing it sends no FIN and no RST, and from the moment its
/// queues are counted it sends nothing that was not sent before. Errors: Unsupported when the connection is
/// not established, Denied, System.
Result<TcpSnapshot> capture(int socket);
/// Out of repair mode again, as if capture() had not been.
Status thaw(int socket, const TcpSnapshot& snapshot);
/// The same connection; its local address need not be configured yet. Nothing is sent. Errors: Corrupt,
/// Denied, System.
Result<Fd> rebuild(const TcpSnapshot& snapshot);
/// Once the local address is here: sends what the source never sent.
Status resume(int socket, const TcpSnapshot& snapshot);

}  // namespace godwit::test
