// UDP and UDP-Lite sockets, bound and connected. Datagrams that wait unread cannot be put into another socket
// with their senders: the freeze waits for an instant without any (capture says Retry).
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/inet_name.h"
#include "engine/state/multicast.h"
#include "engine/state/socket_options.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "udp";
constexpr std::array kUdpLevel = {
    OptionSpec{IPPROTO_UDP, UDP_CORK, sizeof(int), OptionPhase::kLate, "UDP_CORK"},
    OptionSpec{IPPROTO_UDP, UDP_SEGMENT, sizeof(int), OptionPhase::kLate, "UDP_SEGMENT"},
    OptionSpec{IPPROTO_UDP, UDP_GRO, sizeof(int), OptionPhase::kLate, "UDP_GRO"},
    OptionSpec{IPPROTO_UDP, UDP_NO_CHECK6_TX, sizeof(int), OptionPhase::kEarly, "UDP_NO_CHECK6_TX"},
    OptionSpec{IPPROTO_UDP, UDP_NO_CHECK6_RX, sizeof(int), OptionPhase::kEarly, "UDP_NO_CHECK6_RX"},
};

constexpr const char* kMulticast = "a UDP socket that joined a multicast group";
constexpr const char* kMulticastWhy = "the networks of the destination may not carry the group";
constexpr const char* kMulticastRemedy = "leave the group (IP_DROP_MEMBERSHIP) before the migration";

bool claims(const OpenFile& file) {
  if (!file.socket || file.socket->type != SOCK_DGRAM) return false;
  const bool family = file.socket->domain == AF_INET || file.socket->domain == AF_INET6;
  return family && (file.socket->protocol == IPPROTO_UDP || file.socket->protocol == IPPROTO_UDPLITE);
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  const auto copy = ctx.process.pidfd().get_fd(file.number());
  if (!copy.ok()) return {};
  if (has_multicast_membership(ctx.process, copy.value().get(), file.socket->domain))
    findings.push_back(
        {std::string(kRoom), file.subject(), kMulticast, kMulticastWhy, kMulticastRemedy, true});
  pollfd state{copy.value().get(), POLLIN, 0};
  if (::poll(&state, 1, 0) == 1 && (state.revents & POLLIN) != 0)
    findings.push_back({std::string(kRoom), file.subject(), "a UDP socket with datagrams unread",
                        "the freeze waits for an instant without any",
                        "nothing, if the program reads in time", false});
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  const Fd copy = TRY(duplicate(ctx, file));
  if (has_multicast_membership(ctx.process, copy.get(), file.socket->domain))
    return fail(ErrorKind::kUnsupported, fmt::format("capture {}", kMulticast), file.subject(),
                fmt::format("{}: {}", kMulticastWhy, kMulticastRemedy));
  wire::UdpState state;
  state.set_domain(file.socket->domain);
  state.set_protocol(file.socket->protocol);
  state.set_local(read_inet_name(copy.get(), ::getsockname));
  state.set_remote(read_inet_name(copy.get(), ::getpeername));
  *state.mutable_options() = TRY(capture_socket_options(
      copy.get(), file.subject(), {socket_level_options(), ip_level_options(), kUdpLevel}));
  pollfd ready{copy.get(), POLLIN, 0};
  if (ctx.frozen != nullptr && ::poll(&ready, 1, 0) == 1 && (ready.revents & (POLLIN | POLLERR)) != 0)
    return fail(ErrorKind::kRetry, "capture a UDP socket", file.subject(),
                "a datagram or an error waits unread; the migration needs an instant without");
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::UdpState>(kRoom, message);
  if (!state.ok()) return "damaged";
  const auto& s = state.value();
  return fmt::format("{}:{}:{}", s.domain(), s.protocol(), s.options().SerializeAsString());
}

Result<wire::UdpState> parse(std::string_view message) {
  auto state = TRY(parse_message<wire::UdpState>(kRoom, message));
  const size_t size = inet_name_size(state.domain());
  const bool family = size != 0;
  const bool protocol = state.protocol() == IPPROTO_UDP || state.protocol() == IPPROTO_UDPLITE;
  const auto fits = [&](const std::string& name) { return name.empty() || name.size() == size; };
  if (family && protocol && fits(state.local()) && fits(state.remote())) return state;
  return fail(ErrorKind::kCorrupt, "make a UDP socket", fmt::format("family {}", state.domain()),
              "its description makes no sense: the stream is damaged");
}

std::string subject(const wire::UdpState& state) {
  if (state.local().empty()) return "an unbound UDP socket";
  return "UDP socket " + inet_name_text(state.local()) +
         (state.remote().empty() ? "" : " to " + inet_name_text(state.remote()));
}

Result<int> prepare(BuildContext&, std::string_view message) {
  const auto state = TRY(parse(message));
  const int fd = ::socket(state.domain(), SOCK_DGRAM | SOCK_CLOEXEC, state.protocol());
  if (fd < 0) return fail_errno("socket", subject(state));
  for (const OptionPhase phase : {OptionPhase::kEarly, OptionPhase::kLate}) {
    Status applied = apply_socket_options(fd, subject(state), state.options(), phase,
                                          {socket_level_options(), ip_level_options(), kUdpLevel});
    if (applied.ok()) continue;
    ::close(fd);
    return applied.take_error();
  }
  return fd;
}

/// While set, bind and connect take an address that this host does not have yet.
Status set_transparent(int fd, const wire::UdpState& state, bool on) {
  const bool v6 = state.domain() == AF_INET6;
  const int level = v6 ? IPPROTO_IPV6 : IPPROTO_IP;
  const int name = v6 ? IPV6_TRANSPARENT : IP_TRANSPARENT;
  return set_int_option(fd, subject(state), level, name,
                        on ? 1 : option_value(state.options(), level, name, 0));
}

Status use_name(int fd, const wire::UdpState& state, const std::string& name, const char* what,
                int (*call)(int, const sockaddr*, socklen_t)) {
  if (name.empty()) return {};
  const sockaddr_storage address = to_sockaddr(name);
  if (call(fd, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(name.size())) == 0)
    return {};
  Error error = fail_errno(what, subject(state));
  if (error.err == EADDRINUSE) error.remedy = "another program on this host has this port: stop it";
  if (error.err == EADDRNOTAVAIL)
    error.remedy = "this host does not have the address: move it, too (--move-address)";
  return error;
}

Status finish(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse(message));
  if (ctx.addresses_arrive_later) TRY(set_transparent(fd, state, true));
  TRY(use_name(fd, state, state.local(), "bind", ::bind));
  TRY(use_name(fd, state, state.remote(), "connect", ::connect));
  if (ctx.addresses_arrive_later) TRY(set_transparent(fd, state, false));
  return {};
}

}  // namespace

DescriptorRoom udp_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

}  // namespace godwit::state
