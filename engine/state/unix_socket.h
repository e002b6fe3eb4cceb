// The two halves of the unix-socket room: what the source reads (unix_socket.cc), what the destination makes
// (unix_socket_build.cc).
#pragma once

#include <string_view>

#include "engine/state/room.h"

namespace godwit::state {

constexpr std::string_view kUnixRoom = "unix-socket";

Result<int> prepare_unix_socket(BuildContext& ctx, std::string_view message);
/// Abstract names are bound here. A path is bound at the resume, for until COMMIT nothing may change in a
/// file system that the source may share.
Status finish_unix_socket(BuildContext& ctx, int fd, std::string_view message);
Status wire_up_unix_socket(BuildContext& ctx, int fd, std::string_view message);
std::string identify_unix_socket(std::string_view message);

}  // namespace godwit::state
