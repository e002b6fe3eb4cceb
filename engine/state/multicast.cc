#include "engine/state/multicast.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "engine/base/files.h"

namespace godwit::state {
namespace {

constexpr size_t kAddressDigits = 32;

bool is_member(int fd, int domain, const MulticastGroup& group) {
  group_filter filter{};
  filter.gf_interface = group.interface;
  if (domain == AF_INET6) {
    auto& address = reinterpret_cast<sockaddr_in6&>(filter.gf_group);
    address.sin6_family = AF_INET6;
    std::memcpy(&address.sin6_addr, group.address.data(),
                std::min(group.address.size(), sizeof address.sin6_addr));
  } else {
    auto& address = reinterpret_cast<sockaddr_in&>(filter.gf_group);
    address.sin_family = AF_INET;
    std::memcpy(&address.sin_addr, group.address.data(),
                std::min(group.address.size(), sizeof address.sin_addr));
  }
  // KERNEL: EADDRNOTAVAIL for a group that this socket did not join.
  socklen_t length = sizeof filter;
  return ::getsockopt(fd, domain == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_MSFILTER, &filter, &length) ==
         0;
}

std::string from_hex(std::string_view digits) {
  std::string out;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    out.push_back(static_cast<char>(parse_number(digits.substr(i, 2), 16).value_or(0)));
  return out;
}

}  // namespace

// Interfaces begin a line with their index, their groups follow indented: "\t\t\t\t010000E0     1
// 0:00000000\t\t0", the address as a number in the order of this machine.
std::vector<MulticastGroup> parse_igmp(std::string_view text) {
  std::vector<MulticastGroup> groups;
  uint32_t interface = 0;
  for (const std::string_view line : split(text, '\n')) {
    const bool is_group = line.starts_with('\t');
    const auto words = split(trim(line), is_group ? ' ' : '\t');
    if (words.empty()) continue;
    if (!is_group) {
      interface = static_cast<uint32_t>(parse_number(words[0]).value_or(0));
      continue;
    }
    const auto address = parse_number(words[0], 16);
    if (!address || interface == 0) continue;
    const auto number = static_cast<uint32_t>(*address);
    groups.push_back({interface, std::string(reinterpret_cast<const char*>(&number), sizeof number)});
  }
  return groups;
}

// "2    eth0            ff020000000000000000000000000001     1 0000000C 0"
std::vector<MulticastGroup> parse_igmp6(std::string_view text) {
  std::vector<MulticastGroup> groups;
  for (const std::string_view line : split(text, '\n')) {
    const auto words = split(line, ' ');
    if (words.size() < 3 || words[2].size() != kAddressDigits) continue;
    const auto interface = parse_number(words[0]);
    if (interface) groups.push_back({static_cast<uint32_t>(*interface), from_hex(words[2])});
  }
  return groups;
}

bool has_multicast_membership(const tracee::Process& process, int fd, int domain) {
  const bool v6 = domain == AF_INET6;
  const auto text = read_file(process.path(v6 ? "net/igmp6" : "net/igmp"));
  if (!text.ok()) return false;
  const auto groups = v6 ? parse_igmp6(text.value()) : parse_igmp(text.value());
  return std::any_of(groups.begin(), groups.end(),
                     [&](const auto& group) { return is_member(fd, domain, group); });
}

}  // namespace godwit::state
