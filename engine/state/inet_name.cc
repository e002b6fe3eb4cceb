#include "engine/state/inet_name.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::state {
namespace {

/// A plain address: IPv4 in the mapped form, so that both families compare.
in6_addr address_of(const std::string& name) {
  const sockaddr_storage any = to_sockaddr(name);
  if (any.ss_family == AF_INET6) return reinterpret_cast<const sockaddr_in6&>(any).sin6_addr;
  in6_addr out{};
  out.s6_addr[10] = out.s6_addr[11] = 0xff;
  std::memcpy(&out.s6_addr[12], &reinterpret_cast<const sockaddr_in&>(any).sin_addr, sizeof(in_addr));
  return out;
}

bool parse_address(const std::string& text, in6_addr& out) {
  if (::inet_pton(AF_INET6, text.c_str(), &out) == 1) return true;
  return ::inet_pton(AF_INET6, ("::ffff:" + text).c_str(), &out) == 1;
}

}  // namespace

std::string read_inet_name(int fd, NameCall call) {
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  if (call(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) return {};
  // The port is at the same place for both families.
  if (reinterpret_cast<const sockaddr_in*>(&name)->sin_port == 0) return {};
  return {reinterpret_cast<const char*>(&name), length};
}

size_t inet_name_size(int domain) {
  if (domain == AF_INET) return sizeof(sockaddr_in);
  return domain == AF_INET6 ? sizeof(sockaddr_in6) : 0;
}

sockaddr_storage to_sockaddr(const std::string& name) {
  sockaddr_storage out{};
  std::memcpy(&out, name.data(), std::min(name.size(), sizeof out));
  return out;
}

std::string inet_address_text(const std::string& name) {
  const in6_addr address = address_of(name);
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    ::inet_ntop(AF_INET, &address.s6_addr[12], text.data(), text.size());
  } else {
    ::inet_ntop(AF_INET6, &address, text.data(), text.size());
  }
  return text.data();
}

std::string inet_name_text(const std::string& name) {
  const sockaddr_storage any = to_sockaddr(name);
  const std::string address = inet_address_text(name);
  const auto port = ntohs(reinterpret_cast<const sockaddr_in&>(any).sin_port);
  return address.find(':') == std::string::npos ? fmt::format("{}:{}", address, port)
                                                : fmt::format("[{}]:{}", address, port);
}

bool is_loopback(const std::string& name) {
  const in6_addr address = address_of(name);
  if (IN6_IS_ADDR_V4MAPPED(&address)) return address.s6_addr[12] == 127;
  return IN6_IS_ADDR_LOOPBACK(&address);
}

bool is_wildcard(const std::string& name) {
  const in6_addr address = address_of(name);
  if (IN6_IS_ADDR_UNSPECIFIED(&address)) return true;
  constexpr std::array<uint8_t, 4> kAny{};
  return IN6_IS_ADDR_V4MAPPED(&address) && std::memcmp(&address.s6_addr[12], kAny.data(), kAny.size()) == 0;
}

bool is_among(const std::string& name, const std::vector<std::string>& addresses) {
  const in6_addr mine = address_of(name);
  return std::any_of(addresses.begin(), addresses.end(), [&](const std::string& text) {
    in6_addr other{};
    if (!parse_address(text.substr(0, text.find_first_of("/@")), other)) return false;
    return std::memcmp(&mine, &other, sizeof mine) == 0;
  });
}

}  // namespace godwit::state
