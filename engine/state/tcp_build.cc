// TCP sockets, destination half. Connections stay in repair mode, and listeners deaf, until the process runs:
// a migration that is given up before that has told no peer anything.
#include <fmt/format.h>
#include <netinet/in.h>
#include <unistd.h>

#include <memory>

#include "engine/state/inet_name.h"
#include "engine/state/room.h"
#include "engine/state/tcp.h"

namespace godwit::state {
namespace {

constexpr uint32_t kScaleLimit = 14;  // RFC 7323 2.3

OptionTables all_options() {
  static const std::initializer_list<std::span<const OptionSpec>> kAll = {
      socket_level_options(), stream_ip_options(), tcp_level_options()};
  return kAll;
}

bool sensible(const wire::TcpState& state) {
  const size_t size = inet_name_size(state.domain());
  const auto fits = [&](const std::string& name) {
    return name.size() == size && to_sockaddr(name).ss_family == state.domain();
  };
  if (size == 0 || !wire::TcpState::Kind_IsValid(state.kind())) return false;
  if (!state.local().empty() && !fits(state.local())) return false;
  if (state.kind() == wire::TcpState::LISTENING) return !state.local().empty();
  if (state.kind() != wire::TcpState::CONNECTED) return true;
  const auto& connection = state.connection();
  return fits(state.local()) && fits(connection.remote()) &&
         connection.unsent() <= connection.send_queue().size() && connection.send_scale() <= kScaleLimit &&
         connection.receive_scale() <= kScaleLimit && connection.options() <= UINT8_MAX;
}

Result<wire::TcpState> parse(std::string_view message) {
  auto state = TRY(parse_message<wire::TcpState>(kTcpRoomName, message));
  if (sensible(state)) return state;
  return fail(ErrorKind::kCorrupt, "make a TCP socket", fmt::format("family {}", state.domain()),
              "its description makes no sense: the stream is damaged");
}

std::string subject(const wire::TcpState& state) {
  if (state.local().empty()) return "an unbound TCP socket";
  if (state.kind() != wire::TcpState::CONNECTED) return "TCP socket " + inet_name_text(state.local());
  return fmt::format("TCP connection from {} to {}", inet_name_text(state.local()),
                     inet_name_text(state.connection().remote()));
}

Status set_transparent(int fd, const wire::TcpState& state, int on) {
  const bool v6 = state.domain() == AF_INET6;
  return set_int_option(fd, subject(state), v6 ? IPPROTO_IPV6 : IPPROTO_IP,
                        v6 ? IPV6_TRANSPARENT : IP_TRANSPARENT, on);
}

Status bind_name(BuildContext& ctx, int fd, const wire::TcpState& state) {
  if (state.local().empty()) return {};
  // While they are built all sockets share ports with each other; wire_up_tcp() puts it right.
  TRY(set_int_option(fd, subject(state), SOL_SOCKET, SO_REUSEADDR, 1));
  if (ctx.addresses_arrive_later) TRY(set_transparent(fd, state, 1));
  const sockaddr_storage address = to_sockaddr(state.local());
  const auto size = static_cast<socklen_t>(state.local().size());
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0) return {};
  Error error = fail_errno("bind", subject(state));
  if (error.err == EADDRINUSE) error.remedy = "another program on this host has this port: stop it";
  if (error.err == EADDRNOTAVAIL)
    error.remedy = "this host does not have the address: move it, too (--move-address)";
  return error;
}

Status start_listening(int fd, const wire::TcpState& state) {
  if (::listen(fd, static_cast<int>(state.backlog())) == 0) return {};
  return fail_errno("listen", subject(state));
}

Status finish_unconnected(BuildContext& ctx, int fd, const wire::TcpState& state) {
  if (state.max_segment() != 0)
    TRY(set_int_option(fd, subject(state), IPPROTO_TCP, TCP_MAXSEG, static_cast<int>(state.max_segment())));
  TRY(bind_name(ctx, fd, state));
  TRY(apply_socket_options(fd, subject(state), state.options(), OptionPhase::kLate, all_options()));
  // KERNEL: a socket that is not connected takes the shutdown all the same, and says ENOTCONN.
  if (state.kind() == wire::TcpState::ENDED) ::shutdown(fd, SHUT_RDWR);
  if (state.kind() != wire::TcpState::LISTENING) return {};
  // Nobody reaches an address that is not here yet; when it comes, the listener must be there. Elsewhere
  // clients would be answered by a process that may never run.
  if (ctx.addresses_arrive_later && is_among(state.local(), ctx.intent.moved_addresses))
    return start_listening(fd, state);
  ctx.at_resume.emplace_back([fd, state] { return start_listening(fd, state); });
  return {};
}

/// After COMMIT: a connection that cannot go on is broken off, the process is not.
Status resume(int fd, const wire::TcpState& state, const TcpSnapshot& snapshot) {
  if (!resume_connection(fd, snapshot).ok()) {
    const sockaddr nobody{AF_UNSPEC, {}};
    (void)::connect(fd, &nobody, sizeof nobody);
    return {};
  }
  if (state.receive_shut()) ::shutdown(fd, SHUT_RD);
  // What was never sent needed larger buffers for a while.
  if (snapshot.unsent == 0) return {};
  return apply_socket_options(fd, subject(state), state.options(), OptionPhase::kLate, {});
}

Status finish_connected(BuildContext& ctx, int fd, wire::TcpState state) {
  const auto snapshot = std::make_shared<const TcpSnapshot>(from_message(state));
  state.mutable_connection()->clear_send_queue();
  state.mutable_connection()->clear_receive_queue();
  TRY(restore_connection(fd, *snapshot));
  TRY(apply_socket_options(fd, subject(state), state.options(), OptionPhase::kLate, all_options()));
  ctx.at_resume.emplace_back(
      [fd, state = std::move(state), snapshot] { return resume(fd, state, *snapshot); });
  return {};
}

}  // namespace

wire::TcpConnection to_message(const TcpSnapshot& snapshot) {
  wire::TcpConnection out;
  out.set_remote(snapshot.peer);
  out.set_peer_closed(snapshot.peer_closed);
  out.set_send_sequence(snapshot.send_sequence);
  out.set_receive_sequence(snapshot.receive_sequence);
  out.set_send_queue(snapshot.send_queue);
  out.set_unsent(snapshot.unsent);
  out.set_receive_queue(snapshot.receive_queue);
  out.set_mss_clamp(snapshot.mss_clamp);
  out.set_timestamp(snapshot.timestamp);
  out.set_options(snapshot.options);
  out.set_send_scale(snapshot.send_scale);
  out.set_receive_scale(snapshot.receive_scale);
  out.set_window_update(snapshot.window.snd_wl1);
  out.set_send_window(snapshot.window.snd_wnd);
  out.set_max_window(snapshot.window.max_window);
  out.set_receive_window(snapshot.window.rcv_wnd);
  out.set_receive_update(snapshot.window.rcv_wup);
  out.set_send_buffer(static_cast<uint32_t>(snapshot.send_buffer));
  out.set_receive_buffer(static_cast<uint32_t>(snapshot.receive_buffer));
  return out;
}

TcpSnapshot from_message(const wire::TcpState& state) {
  const auto& in = state.connection();
  TcpSnapshot out;
  out.local = state.local();
  out.peer = in.remote();
  out.peer_closed = in.peer_closed();
  out.send_sequence = in.send_sequence();
  out.receive_sequence = in.receive_sequence();
  out.send_queue = in.send_queue();
  out.unsent = in.unsent();
  out.receive_queue = in.receive_queue();
  out.mss_clamp = in.mss_clamp();
  out.timestamp = in.timestamp();
  out.options = static_cast<uint8_t>(in.options());
  out.send_scale = static_cast<uint8_t>(in.send_scale());
  out.receive_scale = static_cast<uint8_t>(in.receive_scale());
  out.window = {in.window_update(), in.send_window(), in.max_window(), in.receive_window(),
                in.receive_update()};
  out.send_buffer = static_cast<int>(in.send_buffer());
  out.receive_buffer = static_cast<int>(in.receive_buffer());
  return out;
}

Result<int> prepare_tcp(BuildContext&, std::string_view message) {
  const auto state = TRY(parse(message));
  const int fd = ::socket(state.domain(), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
  if (fd < 0) return fail_errno("socket", subject(state));
  return fd;
}

Status finish_tcp(BuildContext& ctx, int fd, std::string_view message) {
  auto state = TRY(parse(message));
  TRY(apply_socket_options(fd, subject(state), state.options(), OptionPhase::kEarly, all_options()));
  if (state.kind() == wire::TcpState::CONNECTED) return finish_connected(ctx, fd, std::move(state));
  return finish_unconnected(ctx, fd, state);
}

// ORDER: all finish_tcp() come before this, so its actions run after those of every other socket: until all
// are bound and listening, all must allow the port to be shared.
Status wire_up_tcp(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse(message));
  const int wanted = option_value(state.options(), SOL_SOCKET, SO_REUSEADDR, 0);
  if (wanted != 0) return {};
  ctx.at_resume.emplace_back(
      [fd, name = subject(state)] { return set_int_option(fd, name, SOL_SOCKET, SO_REUSEADDR, 0); });
  return {};
}

std::string tcp_identity(std::string_view message) {
  const auto state = parse_message<wire::TcpState>(kTcpRoomName, message);
  return state.ok() ? fmt::format("{}", state.value().domain()) : "damaged";
}

}  // namespace godwit::state
