#include "engine/state/tcp_repair.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "engine/state/inet_name.h"
#include "engine/state/tcp_fin.h"

namespace godwit::state {
namespace {

constexpr uint32_t kOptionMaxSegment = 2, kOptionWindow = 3, kOptionSack = 4, kOptionTimestamp = 8;
constexpr uint32_t kTimestampLead = 200;  // milliseconds; see lead_timestamp()
constexpr size_t kRestorePiece = 64 * 1024;

Error socket_error(const char* operation, int socket) {
  const int err = errno;
  const std::string name = read_inet_name(socket, ::getsockname);
  return fail_errno(operation, name.empty() ? "a TCP socket" : "TCP socket " + inet_name_text(name), err);
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
Result<std::string> read_queue(int socket, int queue, size_t size, uint32_t& sequence) {
  TRY(select_queue(socket, queue));
  sequence = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ"));
  std::string bytes(size, '\0');
  if (size == 0) return bytes;
  const ssize_t got = ::recv(socket, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) return socket_error("recv(MSG_PEEK) of a repair queue", socket);
  if (static_cast<size_t>(got) == size) return bytes;
  return fail(ErrorKind::kRetry, "read a repair queue", fmt::format("fd {}", socket),
              fmt::format("{} of {} bytes; is the connection held still?", got, size));
}

Status write_queue(int socket, int queue, std::string_view bytes) {
  TRY(select_queue(socket, queue));
  while (!bytes.empty()) {
    const ssize_t put = ::send(socket, bytes.data(), std::min(bytes.size(), kRestorePiece), MSG_DONTWAIT);
    if (put <= 0) return socket_error("send into a repair queue", socket);
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  return {};
}

Status capture_parameters(int socket, TcpSnapshot& snapshot) {
  const auto info = TRY(read_tcp_info(socket));
  snapshot.options = info.tcpi_options;
  snapshot.send_scale = info.tcpi_snd_wscale;
  snapshot.receive_scale = info.tcpi_rcv_wscale;
  snapshot.mss_clamp = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"));
  snapshot.timestamp = TRY(get<uint32_t>(socket, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP"));
  snapshot.send_buffer = TRY(get<int>(socket, SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"));
  snapshot.receive_buffer = TRY(get<int>(socket, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"));
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
  snapshot.reuse_address = TRY(get<int>(socket, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"));
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 1, "TCP_REPAIR"));
  const auto close_window = [&]() -> Status {
    snapshot.window =
        TRY(get<tcp_repair_window>(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW"));
    tcp_repair_window closed = snapshot.window;
    closed.snd_wnd = 0;
    return set_window(socket, closed);
  };
  Status closed = close_window();
  if (!closed.ok()) (void)set(socket, IPPROTO_TCP, TCP_REPAIR, 0, "TCP_REPAIR").ok();
  return closed;
}

Status set_transparent(int socket, int family, int on) {
  // KERNEL: IP_FREEBIND would do for bind, but connect looks for a route from the address, which only a
  // transparent socket gets when the address is nobody's.
  if (family == AF_INET6) return set(socket, IPPROTO_IPV6, IPV6_TRANSPARENT, on, "IPV6_TRANSPARENT");
  return set(socket, IPPROTO_IP, IP_TRANSPARENT, on, "IP_TRANSPARENT");
}

Status use_name(int socket, const std::string& name, int (*call)(int, const sockaddr*, socklen_t),
                const char* what) {
  const sockaddr_storage address = to_sockaddr(name);
  if (call(socket, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(name.size())) == 0)
    return {};
  return fail_errno(what, "TCP connection at " + inet_name_text(name));
}

/// In repair mode connect() sends nothing: the socket is established at once.
Status establish(int socket, const TcpSnapshot& snapshot) {
  // KERNEL: repair mode overrides SO_REUSEADDR, so that the port of a listener can be shared; an assignment
  // afterwards would override that.
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 1, "TCP_REPAIR"));
  TRY(set_transparent(socket, to_sockaddr(snapshot.local).ss_family, 1));
  // KERNEL: the segment size is worked out while connecting, from this; the repair option below comes too
  // late for it.
  TRY(set(socket, IPPROTO_TCP, TCP_MAXSEG, snapshot.mss_clamp, "TCP_MAXSEG"));
  TRY(select_queue(socket, TCP_SEND_QUEUE));
  TRY(set(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, snapshot.send_sequence, "TCP_QUEUE_SEQ"));
  TRY(select_queue(socket, TCP_RECV_QUEUE));
  TRY(set(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, snapshot.receive_sequence, "TCP_QUEUE_SEQ"));
  TRY(use_name(socket, snapshot.local, ::bind, "bind"));
  TRY(use_name(socket, snapshot.peer, ::connect, "connect in repair mode"));
  TRY(set_transparent(socket, to_sockaddr(snapshot.local).ss_family, 0));
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
  return set(socket, IPPROTO_TCP, TCP_TIMESTAMP, lead_timestamp(snapshot.timestamp), "TCP_TIMESTAMP");
}

Status restore_buffers(int socket, const TcpSnapshot& snapshot) {
  // KERNEL: the setter doubles what it is given, and pins the size; SO_BUF_LOCK 0 lets it grow by itself
  // again.
  // Twice the bytes, for what the kernel keeps beside them: to wait for room here would be to wait for the
  // peer.
  const auto room = [](const std::string& queue) {
    return static_cast<int>(2 * queue.size() + kRestorePiece);
  };
  const int send = std::max(snapshot.send_buffer / 2, room(snapshot.send_queue));
  const int receive = std::max(snapshot.receive_buffer / 2, room(snapshot.receive_queue));
  TRY(set(socket, SOL_SOCKET, SO_SNDBUFFORCE, send, "SO_SNDBUFFORCE"));
  TRY(set(socket, SOL_SOCKET, SO_RCVBUFFORCE, receive, "SO_RCVBUFFORCE"));
  return set(socket, SOL_SOCKET, SO_BUF_LOCK, 0, "SO_BUF_LOCK");
}

/// What an error between TCP_REPAIR and the end of a capture must not leave behind.
class RepairMode {
 public:
  RepairMode(int socket, const TcpSnapshot& snapshot) : socket_(socket), snapshot_(snapshot) {}
  ~RepairMode() {
    if (!kept_) (void)thaw_connection(socket_, snapshot_).ok();
  }
  RepairMode(const RepairMode&) = delete;
  RepairMode& operator=(const RepairMode&) = delete;
  void keep() { kept_ = true; }

 private:
  int socket_;
  const TcpSnapshot& snapshot_;
  bool kept_ = false;
};

/// KERNEL: with SO_PEEK_OFF a look at a queue starts at the offset, and moves it.
Status capture_queues(int socket, TcpSnapshot& snapshot) {
  const auto peek = get<int>(socket, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF");
  const bool offset = peek.ok() && peek.value() >= 0;
  if (offset) TRY(set(socket, SOL_SOCKET, SO_PEEK_OFF, -1, "SO_PEEK_OFF"));
  const size_t sending = TRY(count(socket, SIOCOUTQ, "SIOCOUTQ"));
  snapshot.unsent = TRY(count(socket, SIOCOUTQNSD, "SIOCOUTQNSD"));
  const size_t receiving = TRY(count(socket, SIOCINQ, "SIOCINQ"));
  snapshot.send_queue = TRY(read_queue(socket, TCP_SEND_QUEUE, sending, snapshot.send_sequence));
  snapshot.receive_queue = TRY(read_queue(socket, TCP_RECV_QUEUE, receiving, snapshot.receive_sequence));
  snapshot.send_sequence -= static_cast<uint32_t>(sending);
  // The peer's FIN has a sequence number of its own, behind the bytes.
  snapshot.receive_sequence -= static_cast<uint32_t>(receiving) + (snapshot.peer_closed ? 1 : 0);
  if (offset) TRY(set(socket, SOL_SOCKET, SO_PEEK_OFF, peek.value(), "SO_PEEK_OFF"));
  return {};
}

Status expect_capturable(int socket, TcpSnapshot& snapshot) {
  const auto phase = static_cast<TcpPhase>(TRY(read_tcp_info(socket)).tcpi_state);
  snapshot.local = read_inet_name(socket, ::getsockname);
  snapshot.peer = read_inet_name(socket, ::getpeername);
  snapshot.peer_closed = phase == TcpPhase::kCloseWait;
  const bool settled = phase == TcpPhase::kEstablished || phase == TcpPhase::kCloseWait;
  if (!settled || snapshot.peer.empty())
    return fail(ErrorKind::kRetry, "capture a TCP connection", fmt::format("fd {}", socket),
                "it is being opened or closed");
  pollfd urgent{socket, POLLPRI, 0};
  if (::poll(&urgent, 1, 0) == 1 && (urgent.revents & POLLPRI) != 0)
    return fail(ErrorKind::kRetry, "capture a TCP connection", inet_name_text(snapshot.local),
                "urgent data wait unread");
  return {};
}

/// ORDER: an acknowledgement that is being delayed leaves now; the rebuilt socket does not know that it is
/// owed, and the peer would time out on bytes that have long arrived.
Status acknowledge(int socket) {
  // KERNEL: an even value acknowledges, and then leaves the mode as it was: interactive.
  const int mode = TRY(get<int>(socket, IPPROTO_TCP, TCP_QUICKACK, "TCP_QUICKACK"));
  return set(socket, IPPROTO_TCP, TCP_QUICKACK, mode != 0 ? 1 : 2, "TCP_QUICKACK");
}

/// KERNEL: leaving repair mode does not make a socket send; its next acknowledgement would, and a CLOSE_WAIT
/// socket gets none. TCP_NODELAY pushes what the window lets out.
Status push_unsent(int socket) {
  const int no_delay = TRY(get<int>(socket, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY"));
  TRY(set(socket, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"));
  return set(socket, IPPROTO_TCP, TCP_NODELAY, no_delay, "TCP_NODELAY");
}

Status send_unsent(int socket, const TcpSnapshot& snapshot) {
  auto unsent = std::string_view(snapshot.send_queue);
  unsent.remove_prefix(unsent.size() - snapshot.unsent);
  while (!unsent.empty()) {
    const ssize_t put = ::send(socket, unsent.data(), unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put <= 0) return socket_error("send what was never sent", socket);
    unsent.remove_prefix(static_cast<size_t>(put));
  }
  return {};
}

/// The window of a connection without the peer's FIN, which comes last.
tcp_repair_window before_fin(const TcpSnapshot& snapshot) {
  tcp_repair_window window = snapshot.window;
  const auto next = snapshot.receive_sequence + static_cast<uint32_t>(snapshot.receive_queue.size());
  if (snapshot.peer_closed && window.rcv_wup == next + 1) {
    --window.rcv_wup;
    ++window.rcv_wnd;
  }
  return window;
}

FinSegment fin_of(const TcpSnapshot& snapshot) {
  FinSegment fin{snapshot.peer, snapshot.local};
  fin.sequence = snapshot.receive_sequence + static_cast<uint32_t>(snapshot.receive_queue.size());
  fin.acknowledged = snapshot.send_sequence;
  const uint32_t window = snapshot.window.snd_wnd >> std::min<unsigned>(snapshot.send_scale, 14);
  fin.window = static_cast<uint16_t>(std::min<uint32_t>(window, UINT16_MAX));
  return fin;
}

}  // namespace

Result<tcp_info> read_tcp_info(int socket) {
  return get<tcp_info>(socket, IPPROTO_TCP, TCP_INFO, "TCP_INFO");
}

Result<TcpSnapshot> capture_connection(int socket) {
  TcpSnapshot snapshot;
  TRY(expect_capturable(socket, snapshot));
  TRY(acknowledge(socket));
  TRY(mute(socket, snapshot));
  RepairMode repair(socket, snapshot);
  TRY(capture_parameters(socket, snapshot));
  TRY(capture_queues(socket, snapshot));
  repair.keep();
  return snapshot;
}

Status thaw_connection(int socket, const TcpSnapshot& snapshot) {
  TRY(select_queue(socket, TCP_NO_QUEUE));
  TRY(set_window(socket, snapshot.window));
  // KERNEL: 0 also sends a window probe, whose answer tells what the peer has. And SO_REUSEADDR is lost.
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 0, "TCP_REPAIR"));
  TRY(set(socket, SOL_SOCKET, SO_REUSEADDR, snapshot.reuse_address, "SO_REUSEADDR"));
  return push_unsent(socket);
}

Status restore_connection(int socket, const TcpSnapshot& snapshot) {
  if (snapshot.unsent > snapshot.send_queue.size()) {
    return fail(ErrorKind::kCorrupt, "rebuild a TCP connection", inet_name_text(snapshot.local),
                "more bytes are unsent than queued: the stream is damaged");
  }
  TRY(establish(socket, snapshot));
  TRY(restore_options(socket, snapshot));
  TRY(restore_buffers(socket, snapshot));
  TRY(write_queue(socket, TCP_RECV_QUEUE, snapshot.receive_queue));
  const size_t sent = snapshot.send_queue.size() - snapshot.unsent;
  TRY(write_queue(socket, TCP_SEND_QUEUE, std::string_view(snapshot.send_queue).substr(0, sent)));
  TRY(set_window(socket, before_fin(snapshot)));
  return select_queue(socket, TCP_NO_QUEUE);
}

Status resume_connection(int socket, const TcpSnapshot& snapshot) {
  TRY(set(socket, IPPROTO_TCP, TCP_REPAIR, 0, "TCP_REPAIR"));
  TRY(set(socket, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  if (snapshot.unsent > 0) {
    TRY(restore_buffers(socket, snapshot));
    TRY(send_unsent(socket, snapshot));
  }
  return snapshot.peer_closed ? deliver_fin(socket, fin_of(snapshot)) : Status();
}

}  // namespace godwit::state
