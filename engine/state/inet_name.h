// Addresses of IPv4 and IPv6 sockets as bytes (a sockaddr_in or sockaddr_in6, as messages carry them), shared
// by udp and tcp. Pure, except the reading of a socket's name. Thread: any.
#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

namespace godwit::state {

using NameCall = int (*)(int, sockaddr*, socklen_t*);  ///< ::getsockname or ::getpeername

/// Empty: there is no such name (not connected), or it has no port (not bound).
std::string read_inet_name(int fd, NameCall call);
/// The size that a name of this family has; 0 for other families.
size_t inet_name_size(int domain);
sockaddr_storage to_sockaddr(const std::string& name);
/// "10.0.0.5:80", "[::1]:80"
std::string inet_name_text(const std::string& name);
/// "10.0.0.5", also of ::ffff:10.0.0.5.
std::string inet_address_text(const std::string& name);
/// Of loopback: 127.0.0.0/8, ::1, ::ffff:127.0.0.0/104.
bool is_loopback(const std::string& name);
bool is_wildcard(const std::string& name);
/// Is the address one of `addresses`: "10.0.0.5", "10.0.0.5/24" or "10.0.0.5/24@eth0"?
bool is_among(const std::string& name, const std::vector<std::string>& addresses);

}  // namespace godwit::state
