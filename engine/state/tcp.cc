// TCP sockets: listening, connected or neither. A connection is taken along with its address
// (--move-address); its peer notices nothing. Source half: check and capture.
#include "engine/state/tcp.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <array>
#include <memory>
#include <vector>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/inet_name.h"

namespace godwit::state {
namespace {

constexpr int kDefaultSegment = 536;  // include/net/tcp.h: TCP_MSS_DEFAULT, told when nothing was set
constexpr size_t kUlpName = 16;       // TCP_ULP_NAME_MAX

#define OPT(name, size, phase)                            \
  OptionSpec {                                            \
    IPPROTO_TCP, name, size, OptionPhase::k##phase, #name \
  }
constexpr std::array kTcpLevel = {
    OPT(TCP_CONGESTION, 0, Early),
    OPT(TCP_SYNCNT, sizeof(int), Early),
    OPT(TCP_FASTOPEN_CONNECT, sizeof(int), Early),
    OPT(TCP_FASTOPEN_NO_COOKIE, sizeof(int), Early),
    OPT(TCP_FASTOPEN, sizeof(int), Early),
    OPT(TCP_DEFER_ACCEPT, sizeof(int), Early),
    OPT(TCP_SAVE_SYN, sizeof(int), Early),
    OPT(TCP_LINGER2, sizeof(int), Late),
    OPT(TCP_KEEPIDLE, sizeof(int), Late),
    OPT(TCP_KEEPINTVL, sizeof(int), Late),
    OPT(TCP_KEEPCNT, sizeof(int), Late),
    OPT(TCP_USER_TIMEOUT, sizeof(int), Late),
    OPT(TCP_THIN_LINEAR_TIMEOUTS, sizeof(int), Late),
    OPT(TCP_NOTSENT_LOWAT, sizeof(int), Late),
    OPT(TCP_INQ, sizeof(int), Late),
    OPT(TCP_TX_DELAY, sizeof(int), Late),
    OPT(TCP_NODELAY, sizeof(int), Late),
    OPT(TCP_CORK, sizeof(int), Late),
    OPT(TCP_QUICKACK, sizeof(int), Late),
};
#undef OPT

struct Names {
  std::string local, peer;
  TcpPhase phase = TcpPhase::kClose;
};

Result<Names> read_names(int fd) {
  Names names;
  names.phase = static_cast<TcpPhase>(TRY(read_tcp_info(fd)).tcpi_state);
  names.local = read_inet_name(fd, ::getsockname);
  names.peer = read_inet_name(fd, ::getpeername);
  return names;
}

bool is_connected(TcpPhase phase) {
  return phase == TcpPhase::kEstablished || phase == TcpPhase::kCloseWait;
}

/// "" or "tls": what took over the socket.
std::string upper_protocol(int fd) {
  std::array<char, kUlpName> name{};
  socklen_t size = name.size();
  if (::getsockopt(fd, IPPROTO_TCP, TCP_ULP, name.data(), &size) != 0 || size == 0) return {};
  return {name.data(), ::strnlen(name.data(), name.size())};
}

/// What keeps the socket from moving at all.
std::optional<Finding> find_obstacle(int fd, const Names& names, const OpenFile& file, const Intent& intent) {
  const auto fatal = [&](std::string what, std::string why, std::string remedy) {
    return Finding{
        std::string(kTcpRoomName), file.subject(), std::move(what), std::move(why), std::move(remedy), true};
  };
  if (const std::string upper = upper_protocol(fd); !upper.empty())
    return fatal(fmt::format("a TCP socket with the upper layer protocol \"{}\"", upper),
                 "the kernel keeps its keys to itself", "let the program do it without the kernel");
  if (!is_connected(names.phase)) return std::nullopt;
  const std::string what =
      fmt::format("a TCP connection from {} to {}", inet_name_text(names.local), inet_name_text(names.peer));
  if (is_loopback(names.peer))
    return fatal(what, "the other end is on this host", "close it before the migration");
  if (intent.to_file)
    return fatal(what, "its peer would not wait for the restore", "close it, or wait until it is over");
  if (is_among(names.local, intent.moved_addresses)) return std::nullopt;
  const std::string address = inet_address_text(names.local);
  return fatal(what, fmt::format("the address {} stays on this host", address),
               fmt::format("take the address along: --move-address {}/LENGTH@DEVICE", address));
}

void note_phase(const Names& names, const OpenFile& file, Findings& findings) {
  if (names.phase == TcpPhase::kClose || names.phase == TcpPhase::kListen || is_connected(names.phase))
    return;
  findings.push_back({std::string(kTcpRoomName), file.subject(), "a TCP connection being opened or closed",
                      "the freeze waits for an instant without", "nothing, if it does not take long", false});
}

void note_bound_address(const Names& names, const OpenFile& file, const Intent& intent, Findings& findings) {
  const bool bound = names.phase == TcpPhase::kListen || names.phase == TcpPhase::kClose;
  if (!bound || names.local.empty() || is_wildcard(names.local) || is_loopback(names.local)) return;
  if (is_among(names.local, intent.moved_addresses)) return;
  const std::string address = inet_address_text(names.local);
  findings.push_back({std::string(kTcpRoomName), file.subject(),
                      fmt::format("a TCP socket bound to {}", inet_name_text(names.local)),
                      "the destination needs this address, too",
                      fmt::format("take it along (--move-address {}/LENGTH@DEVICE) if it has not", address),
                      false});
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  const auto copy = ctx.process.pidfd().get_fd(file.number());
  if (!copy.ok()) return {};
  const auto names = read_names(copy.value().get());
  if (!names.ok()) return {};
  if (auto obstacle = find_obstacle(copy.value().get(), names.value(), file, ctx.intent))
    findings.push_back(std::move(*obstacle));
  note_phase(names.value(), file, findings);
  note_bound_address(names.value(), file, ctx.intent, findings);
  return {};
}

Error retry(const OpenFile& file, const char* why) {
  return fail(ErrorKind::kRetry, "capture a TCP socket", file.subject(), why);
}

Status capture_listener(int fd, const OpenFile& file, wire::TcpState& state) {
  const auto info = TRY(read_tcp_info(fd));
  // KERNEL: of a listening socket these are the queue of accept(2) and its limit.
  if (info.tcpi_unacked > 0)
    return retry(file, "a connection waits to be accepted; the migration needs an instant without");
  state.set_backlog(info.tcpi_sacked);
  return {};
}

/// KERNEL: the peer or a timeout has ended the connection when a closed socket is readable; one that was
/// never connected says HUP alone.
Status capture_closed(int fd, const OpenFile& file, wire::TcpState& state) {
  pollfd ended{fd, POLLIN | POLLRDHUP, 0};
  if (::poll(&ended, 1, 0) != 1 || (ended.revents & POLLRDHUP) == 0) return {};
  int unread = 0;
  if (::ioctl(fd, FIONREAD, &unread) == 0 && unread > 0)
    return retry(file, "the connection has ended, but its last bytes are unread");
  state.set_kind(wire::TcpState::ENDED);
  state.clear_local();
  return {};
}

bool receive_shut(int fd, const Names& names) {
  pollfd shut{fd, POLLRDHUP, 0};
  return names.phase == TcpPhase::kEstablished && ::poll(&shut, 1, 0) == 1 && (shut.revents & POLLRDHUP) != 0;
}

/// SAFETY: from here the connection is mute until undo runs, or for good. The duplicate in the closure may be
/// the last reference: a socket in repair mode is closed without a word.
Status capture_connected(CaptureContext& ctx, Fd copy, const Names& names, wire::TcpState& state) {
  state.set_receive_shut(receive_shut(copy.get(), names));
  auto snapshot = TRY(capture_connection(copy.get()));
  *state.mutable_connection() = to_message(snapshot);
  snapshot.send_queue = {};
  snapshot.receive_queue = {};
  ctx.undo.emplace_back([fd = std::make_shared<Fd>(std::move(copy)), snapshot = std::move(snapshot)] {
    (void)thaw_connection(fd->get(), snapshot).ok();
    fd->reset();
  });
  return {};
}

int captured_segment(int fd, const OpenFile& file) {
  const auto segment = get_int_option(fd, file.subject(), IPPROTO_TCP, TCP_MAXSEG);
  return segment.ok() && segment.value() != kDefaultSegment ? segment.value() : 0;
}

Status capture_phase(CaptureContext& ctx, Fd copy, const OpenFile& file, const Names& names,
                     wire::TcpState& state) {
  if (is_connected(names.phase)) {
    state.set_kind(wire::TcpState::CONNECTED);
    return capture_connected(ctx, std::move(copy), names, state);
  }
  const bool listens = names.phase == TcpPhase::kListen;
  if (!listens && names.phase != TcpPhase::kClose)
    return retry(file, "a connection is being opened or closed");
  state.set_max_segment(static_cast<uint32_t>(captured_segment(copy.get(), file)));
  state.set_kind(listens ? wire::TcpState::LISTENING : wire::TcpState::CLOSED);
  return listens ? capture_listener(copy.get(), file, state) : capture_closed(copy.get(), file, state);
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  Fd copy = TRY(duplicate(ctx, file));
  const Names names = TRY(read_names(copy.get()));
  if (const auto obstacle = find_obstacle(copy.get(), names, file, ctx.intent))
    return capture_error(ErrorKind::kUnsupported, *obstacle);
  wire::TcpState state;
  state.set_domain(file.socket->domain);
  if (ctx.frozen == nullptr) return state.SerializeAsString();
  state.set_local(names.local);
  // ORDER: before repair mode, which changes what some options say.
  *state.mutable_options() = TRY(capture_socket_options(
      copy.get(), file.subject(), {socket_level_options(), stream_ip_options(), tcp_level_options()}));
  TRY(capture_phase(ctx, std::move(copy), file, names, state));
  return state.SerializeAsString();
}

bool claims(const OpenFile& file) {
  if (!file.socket || file.socket->type != SOCK_STREAM) return false;
  return inet_name_size(file.socket->domain) != 0 && file.socket->protocol == IPPROTO_TCP;
}

}  // namespace

std::span<const OptionSpec> tcp_level_options() {
  return kTcpLevel;
}

// KERNEL: accept(2) leaves values behind for multicasts that a stream socket says, but does not take.
std::span<const OptionSpec> stream_ip_options() {
  static const auto kOptions = [] {
    std::vector<OptionSpec> options;
    for (const OptionSpec& spec : ip_level_options())
      if (std::string_view(spec.text).find("_MULTICAST_") == std::string_view::npos) options.push_back(spec);
    return options;
  }();
  return kOptions;
}

DescriptorRoom tcp_room() {
  return {kTcpRoomName, claims, check, capture, prepare_tcp, finish_tcp, wire_up_tcp, tcp_identity};
}

}  // namespace godwit::state
