#include "engine/state/tcp_fin.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "engine/base/fd.h"
#include "engine/state/inet_name.h"

namespace godwit::state {
namespace {

constexpr int kPatience = 1000;  // milliseconds; the loopback device delivers before sendto() returns
constexpr uint8_t kTtl = 64;
constexpr uint8_t kFinAck = 0x11;

struct TcpHeader {
  uint16_t source, destination;
  uint32_t sequence, acknowledged;
  uint8_t length, flags;
  uint16_t window, checksum, urgent;
};
static_assert(sizeof(TcpHeader) == 20);

/// Ports and addresses of a segment in the family that travels: a mapped address is IPv4.
struct Ends {
  bool v6 = false;
  in6_addr from{}, to{};  ///< IPv4 in the last four bytes
  uint16_t from_port = 0, to_port = 0;
};

void read_end(const std::string& name, in6_addr& address, uint16_t& port, bool& v6) {
  const sockaddr_storage any = to_sockaddr(name);
  const auto& four = reinterpret_cast<const sockaddr_in&>(any);
  port = four.sin_port;
  if (any.ss_family == AF_INET6) {
    address = reinterpret_cast<const sockaddr_in6&>(any).sin6_addr;
    v6 = !IN6_IS_ADDR_V4MAPPED(&address);
  } else {
    std::memcpy(&address.s6_addr[12], &four.sin_addr, sizeof four.sin_addr);
  }
}

Ends ends_of(const FinSegment& segment) {
  Ends ends;
  read_end(segment.from, ends.from, ends.from_port, ends.v6);
  read_end(segment.to, ends.to, ends.to_port, ends.v6);
  return ends;
}

uint32_t sum(const void* data, size_t size, uint32_t so_far) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i + 1 < size; i += 2) so_far += static_cast<uint32_t>(bytes[i] << 8 | bytes[i + 1]);
  return so_far;
}

/// RFC 9293 3.1: over the addresses, the protocol, the length and the header.
uint16_t checksum(const Ends& ends, const TcpHeader& tcp) {
  const size_t skip = ends.v6 ? 0 : 12;
  uint32_t total = IPPROTO_TCP + sizeof tcp;
  total = sum(&ends.from.s6_addr[skip], sizeof(in6_addr) - skip, total);
  total = sum(&ends.to.s6_addr[skip], sizeof(in6_addr) - skip, total);
  total = sum(&tcp, sizeof tcp, total);
  while (total > 0xffff) total = (total & 0xffff) + (total >> 16);
  return htons(static_cast<uint16_t>(~total));
}

template <typename Header>
std::string joined(const Header& ip, const TcpHeader& tcp) {
  std::string packet(sizeof ip + sizeof tcp, '\0');
  std::memcpy(packet.data(), &ip, sizeof ip);
  std::memcpy(packet.data() + sizeof ip, &tcp, sizeof tcp);
  return packet;
}

Status send_packet(const FinSegment& segment) {
  const Ends ends = ends_of(segment);
  const Fd raw(::socket(ends.v6 ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
  const std::string subject = inet_name_text(segment.to);
  if (!raw.valid()) return fail_errno("socket(SOCK_RAW)", subject);
  const std::string packet = fin_packet(segment);
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_addr = ends.to;
  sockaddr_in four{};
  four.sin_family = AF_INET;
  std::memcpy(&four.sin_addr, &ends.to.s6_addr[12], sizeof four.sin_addr);
  const auto* target =
      ends.v6 ? reinterpret_cast<const sockaddr*>(&six) : reinterpret_cast<const sockaddr*>(&four);
  const auto size = static_cast<socklen_t>(ends.v6 ? sizeof six : sizeof four);
  if (::sendto(raw.get(), packet.data(), packet.size(), 0, target, size) < 0)
    return fail_errno("send the end of the stream", subject);
  return {};
}

}  // namespace

std::string fin_packet(const FinSegment& segment) {
  const Ends ends = ends_of(segment);
  TcpHeader tcp{ends.from_port,
                ends.to_port,
                htonl(segment.sequence),
                htonl(segment.acknowledged),
                5 << 4,
                kFinAck,
                htons(segment.window),
                0,
                0};
  tcp.checksum = checksum(ends, tcp);
  if (ends.v6) {
    ip6_hdr ip{};
    ip.ip6_flow = htonl(6U << 28);
    ip.ip6_plen = htons(sizeof tcp);
    ip.ip6_nxt = IPPROTO_TCP;
    ip.ip6_hlim = kTtl;
    ip.ip6_src = ends.from;
    ip.ip6_dst = ends.to;
    return joined(ip, tcp);
  }
  iphdr ip{};
  ip.version = 4;
  ip.ihl = sizeof ip / 4;
  ip.tot_len = htons(sizeof ip + sizeof tcp);
  ip.ttl = kTtl;
  ip.protocol = IPPROTO_TCP;
  std::memcpy(&ip.saddr, &ends.from.s6_addr[12], sizeof ip.saddr);
  std::memcpy(&ip.daddr, &ends.to.s6_addr[12], sizeof ip.daddr);
  return joined(ip, tcp);
}

Status deliver_fin(int socket, const FinSegment& segment) {
  // KERNEL: a packet to a local address keeps the route it was sent by, so the foreign sender is not checked
  // on arrival; but it arrives on the loopback device, and a socket bound to another one would not be found.
  std::array<char, 16> device{};
  socklen_t size = device.size();
  const bool bound = ::getsockopt(socket, SOL_SOCKET, SO_BINDTODEVICE, device.data(), &size) == 0 && size > 0;
  if (bound) ::setsockopt(socket, SOL_SOCKET, SO_BINDTODEVICE, "", 0);
  Status sent = send_packet(segment);
  pollfd end{socket, POLLRDHUP, 0};
  const bool arrived = sent.ok() && ::poll(&end, 1, kPatience) == 1;
  if (bound) ::setsockopt(socket, SOL_SOCKET, SO_BINDTODEVICE, device.data(), size);
  if (!sent.ok() || arrived) return sent;
  return fail(ErrorKind::kTimeout, "deliver the end of the stream", inet_name_text(segment.to),
              "it did not arrive: let the packet filter accept what comes from the loopback device");
}

}  // namespace godwit::state
