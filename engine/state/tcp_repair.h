// Takes a live TCP connection apart at one place and puts it together at another, by TCP_REPAIR: the peer
// notices nothing. Knows established connections, and those that the peer has closed (CLOSE_WAIT).
//
//   source: capture_connection(socket)                        destination: restore_connection(socket,
//   snapshot)
//           close it: nothing is sent                                      resume_connection(socket,
//           snapshot) or thaw_connection(): it goes on as if nothing happened
//
// Place: the room "tcp" is its user. Needs CAP_NET_ADMIN. Packets of the connection must be held away from
// the socket between capture and resume. Thread: any; logs nothing.
#pragma once

#include <linux/tcp.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/result.h"

namespace godwit::state {

// include/net/tcp_states.h; <netinet/tcp.h> has them, but cannot stand beside <linux/tcp.h>, whose tcp_info
// is the newer one.
enum class TcpPhase : uint8_t {
  kEstablished = 1,
  kSynSent,
  kSynReceived,
  kFinWait1,
  kFinWait2,
  kTimeWait,
  kClose,
  kCloseWait,
  kLastAck,
  kListen,
  kClosing,
};

struct TcpSnapshot {
  std::string local;  ///< sockaddr_in or sockaddr_in6
  std::string peer;
  bool peer_closed = false;       ///< CLOSE_WAIT: the end of the stream stands behind receive_queue
  uint32_t send_sequence = 0;     ///< of the first byte of send_queue, which is the first not acknowledged
  uint32_t receive_sequence = 0;  ///< of the first byte of receive_queue, which is the first not read
  std::string send_queue;
  size_t unsent = 0;  ///< bytes at the end of send_queue that never left
  std::string receive_queue;
  uint32_t mss_clamp = 0;
  uint32_t timestamp = 0;  ///< opaque, see TCP_TIMESTAMP
  uint8_t options = 0;     ///< TCPI_OPT_*
  uint8_t send_scale = 0;
  uint8_t receive_scale = 0;
  tcp_repair_window window{};
  int send_buffer = 0;  ///< as getsockopt says
  int receive_buffer = 0;
  int reuse_address = 0;
};

/// TCP_INFO of a TCP socket.
Result<tcp_info> read_tcp_info(int socket);

/// Leaves the socket in repair mode and mute: closing it sends no FIN and no RST, and from the moment its
/// queues are counted it sends nothing that was not sent before. About 20 us and the copy of the queues.
/// After an error it is as before. Errors: Retry when the connection is in another phase or urgent data wait,
/// Denied, System.
Result<TcpSnapshot> capture_connection(int socket);
/// Out of repair mode again, as if the capture had not been.
Status thaw_connection(int socket, const TcpSnapshot& snapshot);

/// Makes a new socket of the same family that connection; the local address need not be configured yet.
/// Nothing is sent, and the socket stays in repair mode. Its buffers become as large as the queues need.
/// About 100 us. Errors: Corrupt, Denied, System.
Status restore_connection(int socket, const TcpSnapshot& snapshot);
/// Once the local address is here: leaves repair mode, asks the peer where it stands and sends what the
/// source never sent. SO_REUSEADDR is left on.
Status resume_connection(int socket, const TcpSnapshot& snapshot);

}  // namespace godwit::state
