// TCP sockets as messages: what the room's two halves share. tcp.cc looks at the source and captures;
// tcp_build.cc makes them on the destination. Only they include this.
#pragma once

#include <string_view>

#include "engine/state/context.h"
#include "engine/state/socket_options.h"
#include "engine/state/tcp_repair.h"
#include "engine/wire/rooms_tcp.pb.h"

namespace godwit::state {

constexpr std::string_view kTcpRoomName = "tcp";

/// IPPROTO_TCP. TCP_MAXSEG and TCP_REPAIR_* are not among them: they mean different things in
/// different phases.
std::span<const OptionSpec> tcp_level_options();
/// ip_level_options() that mean something to a stream.
std::span<const OptionSpec> stream_ip_options();

wire::TcpConnection to_message(const TcpSnapshot& snapshot);
TcpSnapshot from_message(const wire::TcpState& state);

// The destination's doors. Shell's thread.
Result<int> prepare_tcp(BuildContext& ctx, std::string_view message);
Status finish_tcp(BuildContext& ctx, int fd, std::string_view message);
Status wire_up_tcp(BuildContext& ctx, int fd, std::string_view message);
/// The family: a prepared socket is used whatever became of the original meanwhile.
std::string tcp_identity(std::string_view message);

}  // namespace godwit::state
