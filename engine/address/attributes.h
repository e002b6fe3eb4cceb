// Walks the attributes of a netlink message with every length checked. Shared by netlink.cc and
// packet_queue.cc.
#pragma once

#include <linux/netlink.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace godwit::address {

constexpr size_t netlink_align(size_t size) {
  return (size + NLMSG_ALIGNTO - 1) & ~size_t{NLMSG_ALIGNTO - 1};
}

/// Calls `visit(type, bytes)` for each attribute behind the first `fixed` bytes; ends at a malformed one.
template <typename Visit>
void for_each_attribute(std::span<const std::byte> message, size_t fixed, Visit visit) {
  size_t at = netlink_align(fixed);
  while (at + sizeof(nlattr) <= message.size()) {
    nlattr header;
    std::memcpy(&header, message.data() + at, sizeof(header));
    if (header.nla_len < sizeof(nlattr) || header.nla_len > message.size() - at) return;
    visit(header.nla_type & NLA_TYPE_MASK,
          message.subspan(at + sizeof(nlattr), header.nla_len - sizeof(nlattr)));
    at += netlink_align(header.nla_len);
  }
}

inline uint32_t read_u32(std::span<const std::byte> bytes) {
  uint32_t value = 0;
  if (bytes.size() >= sizeof(value)) std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

}  // namespace godwit::address
