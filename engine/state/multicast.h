// Multicast groups that a UDP socket has joined. The kernel lists the groups of an interface with their
// users, not the groups of a socket: each listed group is asked for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tracee/process.h"

namespace godwit::state {

struct MulticastGroup {
  uint32_t interface = 0;  ///< index
  std::string address;     ///< 4 or 16 bytes, network order
};

/// The text of /proc/PID/net/igmp, or igmp6. Pure; lines that make no sense are left out.
std::vector<MulticastGroup> parse_igmp(std::string_view text);
std::vector<MulticastGroup> parse_igmp6(std::string_view text);

/// True when the socket is a member of any group of its network namespace. About 1 us a group.
bool has_multicast_membership(const tracee::Process& process, int fd, int domain);

}  // namespace godwit::state
