// The end of a stream that the peer has sent to the source already, once more: a FIN segment made up here and
// given to the restored socket, which no repair option can put into CLOSE_WAIT. It never leaves this host.
// Place: tcp_repair's last step. Thread: any; the network namespace of the caller is the socket's.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/result.h"

namespace godwit::state {

struct FinSegment {
  std::string from;  ///< the peer; sockaddr
  std::string to;    ///< the socket's own name
  uint32_t sequence = 0;
  uint32_t acknowledged = 0;
  uint16_t window = 0;  ///< scaled down, as in the header
};

/// The IP packet, checksums included (IPv4's own is the kernel's business).
std::string fin_packet(const FinSegment& segment);
/// Delivers it to `socket` and waits until it is in CLOSE_WAIT. Errors: Timeout when a packet filter eats it.
Status deliver_fin(int socket, const FinSegment& segment);

}  // namespace godwit::state
