#include "engine/address/conntrack.h"

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "engine/address/attributes.h"

namespace godwit::address {
namespace {

using Bytes = std::span<const std::byte>;
using Socket = std::unique_ptr<mnl_socket, int (*)(mnl_socket*)>;

/// What names an entry in a request to delete it.
struct Entry {
  std::vector<std::byte> tuple;  ///< CTA_TUPLE_ORIG as the kernel gave it
  std::vector<std::byte> zone;   ///< CTA_ZONE, often absent
};

struct Message {
  alignas(nlmsghdr) std::array<char, 1024> buffer{};
  nlmsghdr* header = nullptr;

  Message(int type, int flags, const IpAddress& ip) {
    header = mnl_nlmsg_put_header(buffer.data());
    header->nlmsg_type = static_cast<uint16_t>((NFNL_SUBSYS_CTNETLINK << 8) | type);
    header->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    auto* generic = static_cast<nfgenmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(nfgenmsg)));
    generic->nfgen_family = static_cast<uint8_t>(ip.family());
    generic->version = NFNETLINK_V0;
  }
};

/// Is `ip` one of the two ends of this CTA_TUPLE_ORIG?
bool concerns(Bytes tuple, const IpAddress& ip) {
  bool found = false;
  for_each_attribute(tuple, 0, [&](int type, Bytes addresses) {
    if (type != CTA_TUPLE_IP) return;
    for_each_attribute(addresses, 0, [&](int, Bytes address) {
      const Bytes wanted = ip.bytes();
      found = found || std::equal(address.begin(), address.end(), wanted.begin(), wanted.end());
    });
  });
  return found;
}

void collect(const nlmsghdr* message, const IpAddress& ip, std::vector<Entry>& entries) {
  const auto* payload = static_cast<const std::byte*>(mnl_nlmsg_get_payload(message));
  Entry entry;
  bool ours = false;
  for_each_attribute(Bytes(payload, mnl_nlmsg_get_payload_len(message)), sizeof(nfgenmsg),
                     [&](int type, Bytes bytes) {
                       if (type == CTA_TUPLE_ORIG) {
                         entry.tuple.assign(bytes.begin(), bytes.end());
                         ours = concerns(bytes, ip);
                       }
                       if (type == CTA_ZONE) entry.zone.assign(bytes.begin(), bytes.end());
                     });
  if (ours && entry.tuple.size() <= 512) entries.push_back(std::move(entry));
}

Result<std::vector<Entry>> list(mnl_socket* socket, const IpAddress& ip) {
  Message request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, ip);
  std::vector<Entry> entries;
  if (mnl_socket_sendto(socket, request.header, request.header->nlmsg_len) < 0) {
    return fail_errno("list tracked connections", ip.to_string());
  }
  std::vector<char> buffer(64 * 1024);
  for (;;) {
    const ssize_t got = mnl_socket_recvfrom(socket, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("list tracked connections", ip.to_string());
    int left = static_cast<int>(got);
    for (auto* message = reinterpret_cast<nlmsghdr*>(buffer.data()); mnl_nlmsg_ok(message, left);
         message = mnl_nlmsg_next(message, &left)) {
      // An error here means that this kernel has no ctnetlink, hence nothing that could be listed.
      if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) return entries;
      collect(message, ip, entries);
    }
  }
}

Status remove(mnl_socket* socket, const IpAddress& ip, const Entry& entry) {
  Message request(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, ip);
  mnl_attr_put(request.header, CTA_TUPLE_ORIG | NLA_F_NESTED, entry.tuple.size(), entry.tuple.data());
  if (!entry.zone.empty()) mnl_attr_put(request.header, CTA_ZONE, entry.zone.size(), entry.zone.data());
  alignas(nlmsghdr) std::array<char, 4096> reply;
  ssize_t got = -1;
  if (mnl_socket_sendto(socket, request.header, request.header->nlmsg_len) < 0 ||
      (got = mnl_socket_recvfrom(socket, reply.data(), reply.size())) < 0) {
    return fail_errno("forget tracked connection", ip.to_string());
  }
  const auto* message = reinterpret_cast<const nlmsghdr*>(reply.data());
  if (!mnl_nlmsg_ok(message, static_cast<int>(got)) || message->nlmsg_type != NLMSG_ERROR) {
    return fail(ErrorKind::kSystem, "forget tracked connection", ip.to_string(),
                "the kernel did not acknowledge");
  }
  const int err = -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(message))->error;
  if (err == 0 || err == ENOENT) return {};  // it may have expired meanwhile
  return fail_errno("forget tracked connection", ip.to_string(), err);
}

}  // namespace

Status forget_connections(const IpAddress& ip) {
  const Socket socket(mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC), &mnl_socket_close);
  if (!socket) return {};  // no netfilter in this kernel
  if (mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) < 0) {
    return fail_errno("bind netfilter socket", "conntrack");
  }
  for (const Entry& entry : TRY(list(socket.get(), ip))) TRY(remove(socket.get(), ip, entry));
  return {};
}

}  // namespace godwit::address
