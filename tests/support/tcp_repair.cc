#include "tests/support/tcp_repair.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace godwit::test {
namespace {

constexpr int kRepairOffNoProbe = -1;  // TCP_REPAIR_OFF_NO_WP
// <netinet/tcp.h> has these, but cannot stand beside <linux/tcp.h>, whose tcp_info is the newer one.
constexpr uint8_t kEstablished = 1;
constexpr uint32_t kOptionMaxSegment = 2, kOptionWindow = 3, kOptionSack = 4, kOptionTimestamp = 8;
constexpr uint32_t kTimestampLead = 200;  // milliseconds; see lead_timestamp()
constexpr size_t kRestorePiece = 64 * 1024;

Error socket_error(const char* operation, int socket) {
  return fail_errno(operation, fmt::format("fd {}", socket));
}

template <typename T>
Status set(int socket, int level, int option, const T& value, const char* name) {
  if (::setsockopt(socket, level, option, &value, sizeof(value)) == 0) return {};
  return socket_error(name, socket);
}

template <typename T>
Result<T> get(int socket, int level, int option, const char* name) {
  T value{};
  socklen_t size = sizeof(value);
  if (::getsockopt(socket, level, option, &value, &size) != 0) return socket_error(name, socket);
  return value;
}

Status select_queue(int socket, int queue) {
  return set(socket, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE");
}

Result<size_t> count(int socket, unsigned long request, const char* name) {
  int bytes = 0;
  if (::ioctl(socket, request, &bytes) != 0) return socket_error(name, socket);
  return static_cast<size_t>(bytes);
}

/// Reads a queue without consuming it; `sequence` becomes that of its end.
Result<std::vector<std::byte>> read_queue(int socket, int queue, size_t size, uint32_t& sequence) {
  TRY(select_queue(socket, queue));
  sequence = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ"));
  std::vector<std::byte> bytes(size);
  if (size == 0) return bytes;
  const ssize_t got = ::recv(socket, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) return socket_error("recv(MSG_PEEK) of a repair queue", socket);
  if (static_cast<size_t>(got) == size) return bytes;
  return fail(ErrorKind::kRetry, "read repair queue", fmt::format("fd {}", socket),
              fmt::format("{} of {} bytes; is the connection held still?", got, size));
}

Status write_queue(int socket, int queue, std::span<const std::byte> bytes) {
  TRY(select_queue(socket, queue));
  while (!bytes.empty()) {
    const ssize_t put = ::send(socket, bytes.data(), std::min(bytes.size(), kRestorePiece), MSG_DONTWAIT);
    if (put <= 0) return socket_error("send into a repair queue", socket);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return {};
}

Status capture_parameters(int socket, TcpSnapshot& snapshot) {
  const auto info = TRY(get<tcp_info>(socket, IPPROTO_TCP, TCP_INFO, "TCP_INFO"));
  snapshot.options = info.tcpi_options;
  snapshot.send_scale = info.tcpi_snd_wscale;
  snapshot.receive_scale = info.tcpi_rcv_wscale;
  snapshot.mss_clamp = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"));
  snapshot.timestamp = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP"));
  snapshot.send_buffer = TRY(get<int>(socket, SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"));
  snapshot.receive_buffer = TRY(get<int>(socket, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"));
  snapshot.no_delay = TRY(get<int>(socket, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY"));
  return {};
}

Status set_window(int socket, const tcp_repair_window& window) {
  return set(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, window, "TCP_REPAIR_WINDOW");
}

/// KERNEL: repair mode alone does not keep a socket from sending: the pacing timer and the completion of
/// earlier packets go on pushing what waits in the send queue. Bytes that leave after they were counted as
/// unsent are the end of the connection: the peer acknowledges what the rebuilt socket says it never sent,
/// and is ignored for it. A peer window of zero keeps every new byte back.
Status mute(int socket, TcpSnapshot& snapshot) {
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 1, "TCP_REPAIR"));
  snapshot.window = TRY(get<tcp_repair_window>(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW"));
  tcp_repair_window closed = snapshot.window;
  closed.snd_wnd = 0;
  return set_window(socket, closed);
}

Status capture_names(int socket, TcpSnapshot& snapshot) {
  socklen_t size = sizeof(snapshot.local);
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&snapshot.local), &size) != 0) {
    return socket_error("getsockname", socket);
  }
  size = sizeof(snapshot.peer);
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&snapshot.peer), &size) != 0) {
    return socket_error("getpeername", socket);
  }
  return {};
}

socklen_t size_of(const sockaddr_storage& name) {
  return name.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

Status set_transparent(int socket, int family, int on) {
  // KERNEL: IP_FREEBIND would do for bind, but connect looks for a route from the address, which only a
  // transparent socket gets when the address is nobody's.
  if (family == AF_INET6) return set(socket, IPPROTO_IPV6, IPV6_TRANSPARENT, on, "IPV6_TRANSPARENT");
  return set(socket, IPPROTO_IP, IP_TRANSPARENT, on, "IP_TRANSPARENT");
}

/// In repair mode connect() sends nothing: the socket is established at once.
Status establish(int socket, const TcpSnapshot& snapshot) {
  TRY(set(socket, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 1, "TCP_REPAIR"));
  TRY(set_transparent(socket, snapshot.local.ss_family, 1));
  // KERNEL: the segment size is worked out while connecting, from this; the repair option below comes too
  // late for it.
  TRY(set(socket, IPPROTO_TCP, TCP_MAXSEG, snapshot.mss_clamp, "TCP_MAXSEG"));
  TRY(select_queue(socket, TCP_SEND_QUEUE));
  TRY(set(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, snapshot.send_sequence, "TCP_QUEUE_SEQ"));
  TRY(select_queue(socket, TCP_RECV_QUEUE));
  TRY(set(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, snapshot.receive_sequence, "TCP_QUEUE_SEQ"));
  if (::bind(socket, reinterpret_cast<const sockaddr*>(&snapshot.local), size_of(snapshot.local)) != 0) {
    return socket_error("bind", socket);
  }
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&snapshot.peer), size_of(snapshot.peer)) != 0) {
    return socket_error("connect in repair mode", socket);
  }
  return set(socket, IPPROTO_TCP, TCP_MAXSEG, 0, "TCP_MAXSEG");  // no limit of the user's own
}

/// KERNEL: a pure acknowledgement of a paced connection (BBR, say) carries the time at which the next data
/// may leave, some milliseconds ahead of the clock, and reading the clock rounds down. A rebuilt socket that
/// went on from there would step back behind what the peer has seen, and the peer drops that as old (PAWS)
/// until its own clock catches up: a silence of a second. A leap forward does no harm. The lowest bit says
/// that the unit is a microsecond.
uint32_t lead_timestamp(uint32_t timestamp) {
  const bool microseconds = (timestamp & 1) != 0;
  return timestamp + kTimestampLead * (microseconds ? 1000 : 1);
}

Status restore_options(int socket, const TcpSnapshot& snapshot) {
  std::vector<tcp_repair_opt> options{{kOptionMaxSegment, snapshot.mss_clamp}};
  if ((snapshot.options & TCPI_OPT_WSCALE) != 0) {
    options.push_back({kOptionWindow, snapshot.send_scale | (uint32_t{snapshot.receive_scale} << 16)});
  }
  if ((snapshot.options & TCPI_OPT_SACK) != 0) options.push_back({kOptionSack, 0});
  if ((snapshot.options & TCPI_OPT_TIMESTAMPS) != 0) options.push_back({kOptionTimestamp, 0});
  const auto size = static_cast<socklen_t>(options.size() * sizeof(options[0]));
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(), size) != 0) {
    return socket_error("TCP_REPAIR_OPTIONS", socket);
  }
  TRY(set(socket, IPPROTO_TCP, TCP_TIMESTAMP, lead_timestamp(snapshot.timestamp), "TCP_TIMESTAMP"));
  return set(socket, IPPROTO_TCP, TCP_NODELAY, snapshot.no_delay, "TCP_NODELAY");
}

Status restore_buffers(int socket, const TcpSnapshot& snapshot) {
  // KERNEL: the setter doubles what it is given, and pins the size; SO_BUF_LOCK 0 lets it grow by itself
  // again.
  const int queued = static_cast<int>(std::max(snapshot.send_queue.size(), snapshot.receive_queue.size()));
  const int send = std::max(snapshot.send_buffer / 2, queued);
  const int receive = std::max(snapshot.receive_buffer / 2, queued);
  TRY(set(socket, SOL_SOCKET, SO_SNDBUFFORCE, send, "SO_SNDBUFFORCE"));
  TRY(set(socket, SOL_SOCKET, SO_RCVBUFFORCE, receive, "SO_RCVBUFFORCE"));
  return set(socket, SOL_SOCKET, SO_BUF_LOCK, 0, "SO_BUF_LOCK");
}

}  // namespace

Result<TcpSnapshot> capture(int socket) {
  const auto info = TRY(get<tcp_info>(socket, IPPROTO_TCP, TCP_INFO, "TCP_INFO"));
  if (info.tcpi_state != kEstablished) {
    return fail(ErrorKind::kUnsupported, "capture TCP connection", fmt::format("fd {}", socket),
                "only established connections can be captured");
  }
  // ORDER: an acknowledgement that is being delayed leaves now; the rebuilt socket does not know that it is
  // owed, and the peer would time out on bytes that have long arrived.
  TRY(set(socket, IPPROTO_TCP, TCP_QUICKACK, 1, "TCP_QUICKACK"));
  TcpSnapshot snapshot;
  TRY(mute(socket, snapshot));
  TRY(capture_names(socket, snapshot));
  TRY(capture_parameters(socket, snapshot));
  const size_t sending = TRY(count(socket, SIOCOUTQ, "SIOCOUTQ"));
  snapshot.unsent = TRY(count(socket, SIOCOUTQNSD, "SIOCOUTQNSD"));
  const size_t receiving = TRY(count(socket, SIOCINQ, "SIOCINQ"));
  snapshot.send_queue = TRY(read_queue(socket, TCP_SEND_QUEUE, sending, snapshot.send_sequence));
  snapshot.receive_queue = TRY(read_queue(socket, TCP_RECV_QUEUE, receiving, snapshot.receive_sequence));
  snapshot.send_sequence -= static_cast<uint32_t>(sending);
  snapshot.receive_sequence -= static_cast<uint32_t>(receiving);
  return snapshot;
}

Status thaw(int socket, const TcpSnapshot& snapshot) {
  TRY(select_queue(socket, TCP_NO_QUEUE));
  TRY(set_window(socket, snapshot.window));
  // KERNEL: 0 also sends a window probe; its answer gets the send queue going again.
  return set(socket, IPPROTO_TCP, TCP_REPAIR, 0, "TCP_REPAIR");
}

Result<Fd> rebuild(const TcpSnapshot& snapshot) {
  if (snapshot.unsent > snapshot.send_queue.size()) {
    return fail(ErrorKind::kCorrupt, "rebuild TCP connection", "snapshot", "more bytes unsent than queued");
  }
  Fd socket(::socket(snapshot.local.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno("socket", "TCP");
  TRY(establish(socket.get(), snapshot));
  TRY(restore_options(socket.get(), snapshot));
  TRY(restore_buffers(socket.get(), snapshot));
  TRY(write_queue(socket.get(), TCP_RECV_QUEUE, snapshot.receive_queue));
  const size_t sent = snapshot.send_queue.size() - snapshot.unsent;
  TRY(write_queue(socket.get(), TCP_SEND_QUEUE, std::span(snapshot.send_queue).first(sent)));
  TRY(set_window(socket.get(), snapshot.window));
  TRY(select_queue(socket.get(), TCP_NO_QUEUE));
  TRY(set(socket.get(), IPPROTO_TCP, TCP_REPAIR, kRepairOffNoProbe, "TCP_REPAIR"));
  return socket;
}

Status resume(int socket, const TcpSnapshot& snapshot) {
  TRY(set_transparent(socket, snapshot.local.ss_family, 0));
  auto unsent = std::span(snapshot.send_queue).last(snapshot.unsent);
  while (!unsent.empty()) {
    const ssize_t put = ::send(socket, unsent.data(), unsent.size(), MSG_NOSIGNAL);
    if (put < 0) return socket_error("send what was never sent", socket);
    unsent = unsent.subspan(static_cast<size_t>(put));
  }
  return {};
}

}  // namespace godwit::test
