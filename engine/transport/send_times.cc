#include "engine/transport/send_times.h"

#include <linux/tcp.h>  // <netinet/tcp.h> knows less, and the two exclude each other
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>

namespace godwit::transport {

std::optional<SendTimes> send_times(int socket) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  // KERNEL: it fills what it knows, and says how much that is.
  if (size < offsetof(tcp_info, tcpi_snd_wnd) + sizeof info.tcpi_snd_wnd) return std::nullopt;
  return SendTimes{std::chrono::microseconds(info.tcpi_busy_time),
                   std::chrono::microseconds(info.tcpi_rwnd_limited), info.tcpi_snd_wnd};
}

}  // namespace godwit::transport
