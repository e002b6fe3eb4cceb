#include "engine/address/netlink.h"

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>

#include <algorithm>
#include <cstring>

#include "engine/address/attributes.h"
#include "engine/base/clock.h"

namespace godwit::address {
namespace {

constexpr size_t kRequestSize = 4096;
constexpr std::chrono::milliseconds kLocalLimit{2000};
constexpr size_t kReplySize = 64 * 1024;  // a dump's part; the kernel fills at most 32 KiB

/// A request under construction, with room for what this file puts into one.
class Request {
 public:
  Request(uint16_t type, uint16_t flags) {
    header_ = mnl_nlmsg_put_header(buffer_.data());
    header_->nlmsg_type = type;
    header_->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  }
  template <typename T>
  T* extra() {
    return static_cast<T*>(mnl_nlmsg_put_extra_header(header_, sizeof(T)));
  }
  void put(uint16_t type, const IpAddress& ip) { mnl_attr_put(header_, type, ip.size(), ip.bytes().data()); }
  void put_u32(uint16_t type, uint32_t value) { mnl_attr_put_u32(header_, type, value); }
  void put_text(uint16_t type, const std::string& text) { mnl_attr_put_strz(header_, type, text.c_str()); }
  void put_raw(std::span<const std::byte> bytes) {
    std::memcpy(mnl_nlmsg_put_extra_header(header_, bytes.size()), bytes.data(), bytes.size());
  }
  nlmsghdr* get() { return header_; }

 private:
  alignas(nlmsghdr) std::array<char, kRequestSize> buffer_{};
  nlmsghdr* header_;
};

std::span<const std::byte> payload_of(const nlmsghdr* message) {
  return {static_cast<const std::byte*>(mnl_nlmsg_get_payload(message)), mnl_nlmsg_get_payload_len(message)};
}

void assign(IpAddress& to, std::span<const std::byte> bytes) {
  if (Result<IpAddress> ip = IpAddress::from_bytes(bytes)) to = ip.take();
}

void read_link(const nlmsghdr* message, Link& link) {
  const auto record = payload_of(message);
  ifinfomsg info{};
  if (message->nlmsg_type != RTM_NEWLINK || record.size() < sizeof(info)) return;
  std::memcpy(&info, record.data(), sizeof(info));
  link.index = info.ifi_index;
  link.up = (info.ifi_flags & IFF_UP) != 0;
  link.loopback = (info.ifi_flags & IFF_LOOPBACK) != 0;
  for_each_attribute(record, sizeof(info), [&](int type, std::span<const std::byte> bytes) {
    if (type != IFLA_ADDRESS || bytes.size() != link.mac.size()) return;
    std::memcpy(link.mac.data(), bytes.data(), bytes.size());
    link.has_mac = info.ifi_type == ARPHRD_ETHER;
  });
}

std::string on_device(const IpAddress& ip, int index) {
  return fmt::format("{} at interface {}", ip.to_string(), index);
}

}  // namespace

Result<InterfaceAddress> parse_address_record(std::span<const std::byte> record) {
  ifaddrmsg fixed{};
  if (record.size() < sizeof(fixed)) {
    return fail(ErrorKind::kCorrupt, "read address record", fmt::format("{} bytes", record.size()));
  }
  std::memcpy(&fixed, record.data(), sizeof(fixed));
  InterfaceAddress address;
  address.prefix_length = fixed.ifa_prefixlen;
  address.index = static_cast<int>(fixed.ifa_index);
  address.flags = fixed.ifa_flags;
  IpAddress local;
  for_each_attribute(record, sizeof(fixed), [&](int type, std::span<const std::byte> bytes) {
    if (type == IFA_ADDRESS) assign(address.ip, bytes);
    if (type == IFA_LOCAL) assign(local, bytes);
    if (type == IFA_FLAGS) address.flags = read_u32(bytes);
  });
  if (local.valid()) address.ip = local;  // with a peer, IFA_ADDRESS is the peer
  if (static_cast<uint8_t>(address.ip.family()) != fixed.ifa_family) {
    return fail(ErrorKind::kCorrupt, "read address record", fmt::format("family {}", fixed.ifa_family));
  }
  address.record.assign(record.begin(), record.end());
  return address;
}

Result<Route> parse_route_record(std::span<const std::byte> record) {
  rtmsg fixed{};
  if (record.size() < sizeof(fixed)) {
    return fail(ErrorKind::kCorrupt, "read route record", fmt::format("{} bytes", record.size()));
  }
  std::memcpy(&fixed, record.data(), sizeof(fixed));
  Route route;
  route.prefix_length = fixed.rtm_dst_len;
  route.table = fixed.rtm_table;
  route.protocol = fixed.rtm_protocol;
  route.type = fixed.rtm_type;
  for_each_attribute(record, sizeof(fixed), [&](int type, std::span<const std::byte> bytes) {
    if (type == RTA_DST) assign(route.destination, bytes);
    if (type == RTA_GATEWAY) assign(route.gateway, bytes);
    if (type == RTA_PREFSRC) assign(route.preferred_source, bytes);
    if (type == RTA_OIF) route.index = static_cast<int>(read_u32(bytes));
    if (type == RTA_TABLE) route.table = read_u32(bytes);
  });
  route.record.assign(record.begin(), record.end());
  return route;
}

void Netlink::Close::operator()(mnl_socket* socket) const {
  mnl_socket_close(socket);
}

Result<Netlink> Netlink::open() {
  mnl_socket* socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
  if (socket == nullptr) return fail_errno("open netlink socket", "NETLINK_ROUTE");
  Netlink netlink(socket);
  if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0)
    return fail_errno("bind netlink socket", "NETLINK_ROUTE");
  return netlink;
}

Result<int> Netlink::exchange(nlmsghdr* request, const Handler& on_reply) {
  request->nlmsg_seq = ++sequence_;
  if (mnl_socket_sendto(socket_.get(), request, request->nlmsg_len) < 0) {
    return fail_errno("send netlink request", fmt::format("type {}", request->nlmsg_type));
  }
  const bool wants_ack = (request->nlmsg_flags & (NLM_F_ACK | NLM_F_DUMP)) != 0;
  alignas(nlmsghdr) thread_local std::array<char, kReplySize> buffer;
  for (;;) {
    const ssize_t got = mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read netlink reply", fmt::format("type {}", request->nlmsg_type));
    int left = static_cast<int>(got);
    for (auto* message = reinterpret_cast<nlmsghdr*>(buffer.data()); mnl_nlmsg_ok(message, left);
         message = mnl_nlmsg_next(message, &left)) {
      if (message->nlmsg_seq != sequence_) continue;
      if (message->nlmsg_type == NLMSG_DONE) return 0;
      if (message->nlmsg_type == NLMSG_ERROR) {
        return -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(message))->error;
      }
      if (on_reply) on_reply(message);
      if (!wants_ack) return 0;
    }
  }
}

Result<bool> Netlink::change(nlmsghdr* request, const char* operation, const std::string& subject,
                             std::initializer_list<int> already) {
  request->nlmsg_flags |= NLM_F_ACK;
  const int err = TRY(exchange(request, nullptr));
  if (err == 0) return true;
  if (std::find(already.begin(), already.end(), err) != already.end()) return false;
  // KERNEL: rtnetlink says ESRCH for a missing route; this is not a missing process.
  Error error = fail_errno(operation, subject, err);
  if (err == ESRCH) error.kind = ErrorKind::kSystem;
  return error;
}

Result<bool> Netlink::replay(uint16_t type, uint16_t flags, std::span<const std::byte> record,
                             const char* operation, const std::string& subject,
                             std::initializer_list<int> already) {
  if (record.size() > kRequestSize - MNL_NLMSG_HDRLEN - 64) {
    return fail(ErrorKind::kCorrupt, operation, subject, "the record is longer than any the kernel makes");
  }
  Request request(type, flags);
  request.put_raw(record);
  return change(request.get(), operation, subject, already);
}

Result<Link> Netlink::link(const std::string& name) {
  Request request(RTM_GETLINK, 0);
  request.extra<ifinfomsg>()->ifi_family = AF_UNSPEC;
  request.put_text(IFLA_IFNAME, name);
  Link link;
  link.name = name;
  const int err = TRY(exchange(request.get(), [&](const nlmsghdr* message) { read_link(message, link); }));
  if (err == ENODEV)
    return fail(ErrorKind::kUsage, "look up device", name, "`ip link` lists the devices of this host");
  if (err != 0) return fail_errno("look up device", name, err);
  return link;
}

Result<std::vector<InterfaceAddress>> Netlink::addresses(Family family, int index) {
  Request request(RTM_GETADDR, NLM_F_DUMP);
  request.extra<ifaddrmsg>()->ifa_family = static_cast<uint8_t>(family);
  std::vector<InterfaceAddress> found;
  const int err = TRY(exchange(request.get(), [&](const nlmsghdr* message) {
    if (message->nlmsg_type != RTM_NEWADDR) return;
    Result<InterfaceAddress> address = parse_address_record(payload_of(message));
    if (address && address->index == index) found.push_back(address.take());
  }));
  if (err != 0) return fail_errno("list addresses", fmt::format("interface {}", index), err);
  return found;
}

Result<Route> Netlink::route_to(const IpAddress& destination) {
  Request request(RTM_GETROUTE, 0);
  auto* fixed = request.extra<rtmsg>();
  fixed->rtm_family = static_cast<uint8_t>(destination.family());
  fixed->rtm_dst_len = static_cast<uint8_t>(destination.bits());
  request.put(RTA_DST, destination);
  Result<Route> route =
      fail(ErrorKind::kSystem, "look up route", destination.to_string(), "the kernel gave no route");
  const int err = TRY(exchange(request.get(), [&](const nlmsghdr* message) {
    if (message->nlmsg_type == RTM_NEWROUTE) route = parse_route_record(payload_of(message));
  }));
  if (err != 0) return fail_errno("look up route", destination.to_string(), err);
  return route;
}

Result<std::vector<Route>> Netlink::host_routes(const IpAddress& ip) {
  Request request(RTM_GETROUTE, NLM_F_DUMP);
  request.extra<rtmsg>()->rtm_family = static_cast<uint8_t>(ip.family());
  std::vector<Route> found;
  const int err = TRY(exchange(request.get(), [&](const nlmsghdr* message) {
    if (message->nlmsg_type != RTM_NEWROUTE) return;
    const auto record = payload_of(message);
    rtmsg fixed{};
    if (record.size() >= sizeof(fixed)) std::memcpy(&fixed, record.data(), sizeof(fixed));
    Result<Route> route = parse_route_record(record);
    const bool cached = (fixed.rtm_flags & RTM_F_CLONED) != 0;
    if (route && !cached && route->destination == ip && route->prefix_length == ip.bits()) {
      found.push_back(route.take());
    }
  }));
  if (err != 0) return fail_errno("list routes", ip.to_string(), err);
  return found;
}

Result<bool> Netlink::add_address(const ServiceAddress& service, int index) {
  Request request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
  auto* fixed = request.extra<ifaddrmsg>();
  fixed->ifa_family = static_cast<uint8_t>(service.ip.family());
  fixed->ifa_prefixlen = service.prefix_length;
  fixed->ifa_index = static_cast<uint32_t>(index);
  request.put(IFA_LOCAL, service.ip);
  request.put(IFA_ADDRESS, service.ip);
  // KERNEL: without NODAD an IPv6 address stays tentative for a second, and answers nobody meanwhile.
  if (service.ip.family() == Family::kInet6) request.put_u32(IFA_FLAGS, IFA_F_NODAD);
  return become_local(request.get(), "add address", service.ip, index);
}

Result<bool> Netlink::restore_address(const InterfaceAddress& address) {
  Request request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
  request.put_raw(address.record);
  // KERNEL: a later attribute of the same type wins, so this one replaces the record's flags. Kept are those
  // that a user may set; TENTATIVE, DADFAILED and PERMANENT are the kernel's own.
  constexpr uint32_t kSettable =
      IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN;
  const bool v6 = address.ip.family() == Family::kInet6;
  request.put_u32(IFA_FLAGS, (address.flags & kSettable) | (v6 ? IFA_F_NODAD : 0u));
  return become_local(request.get(), "restore address", address.ip, address.index);
}

Result<bool> Netlink::become_local(nlmsghdr* request, const char* operation, const IpAddress& ip, int index) {
  const std::string subject = on_device(ip, index);
  if (ip.family() == Family::kInet) return change(request, operation, subject, {EEXIST});
  // KERNEL: an IPv6 address, even one without duplicate address detection, becomes local in a work item some
  // time after the request was acknowledged. Packets that arrive before are not for this host, and are
  // dropped.
  const Netlink listener = TRY(listen(RTNLGRP_IPV6_ROUTE));
  const bool changed = TRY(change(request, operation, subject, {EEXIST}));
  const auto is_local = [&]() -> Result<bool> {
    const Result<Route> route = route_to(ip);
    return route.ok() && route.value().type == RTN_LOCAL;
  };
  if (TRY(await(listener, kLocalLimit, is_local))) return changed;
  return fail(ErrorKind::kTimeout, operation, subject,
              "it did not become local; is its device up, with a link?");
}

Result<bool> Netlink::remove_address(const IpAddress& ip, uint8_t prefix_length, int index) {
  Request request(RTM_DELADDR, 0);
  auto* fixed = request.extra<ifaddrmsg>();
  fixed->ifa_family = static_cast<uint8_t>(ip.family());
  fixed->ifa_prefixlen = prefix_length;
  fixed->ifa_index = static_cast<uint32_t>(index);
  request.put(IFA_LOCAL, ip);
  request.put(IFA_ADDRESS, ip);
  return change(request.get(), "remove address", on_device(ip, index), {EADDRNOTAVAIL});
}

namespace {
void fill_route_via(Request& request, const IpAddress& ip, const IpAddress& gateway, int index) {
  auto* fixed = request.extra<rtmsg>();
  fixed->rtm_family = static_cast<uint8_t>(ip.family());
  fixed->rtm_dst_len = static_cast<uint8_t>(ip.bits());
  fixed->rtm_table = RT_TABLE_MAIN;
  fixed->rtm_protocol = kRouteProtocol;
  fixed->rtm_scope = RT_SCOPE_UNIVERSE;
  fixed->rtm_type = RTN_UNICAST;
  fixed->rtm_flags = RTNH_F_ONLINK;
  request.put(RTA_DST, ip);
  request.put(RTA_GATEWAY, gateway);
  request.put_u32(RTA_OIF, static_cast<uint32_t>(index));
}
}  // namespace

Result<bool> Netlink::add_route_via(const IpAddress& ip, const IpAddress& gateway, int index) {
  Request request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
  fill_route_via(request, ip, gateway, index);
  return change(request.get(), "add route", fmt::format("{} via {}", ip.to_string(), gateway.to_string()),
                {EEXIST});
}

Result<bool> Netlink::remove_route_via(const IpAddress& ip, const IpAddress& gateway, int index) {
  Request request(RTM_DELROUTE, 0);
  fill_route_via(request, ip, gateway, index);
  return change(request.get(), "remove route", fmt::format("{} via {}", ip.to_string(), gateway.to_string()),
                {ESRCH, ENODEV});
}

Result<bool> Netlink::restore_route(const Route& route) {
  KernelRecord record = route.record;
  rtmsg fixed{};
  if (record.size() >= sizeof(fixed)) {
    // KERNEL: a dump also reports the state of the nexthop in rtm_flags, which a request must not carry.
    std::memcpy(&fixed, record.data(), sizeof(fixed));
    fixed.rtm_flags &= RTNH_F_ONLINK | RTNH_F_PERVASIVE;
    std::memcpy(record.data(), &fixed, sizeof(fixed));
  }
  return replay(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, record, "restore route",
                on_device(route.destination, route.index), {EEXIST});
}

Result<bool> Netlink::remove_route(const Route& route) {
  return replay(RTM_DELROUTE, 0, route.record, "remove route", on_device(route.destination, route.index),
                {ESRCH});
}

Result<bool> Netlink::neighbour_known(const IpAddress& ip, int index) {
  Request request(RTM_GETNEIGH, 0);
  auto* fixed = request.extra<ndmsg>();
  fixed->ndm_family = static_cast<uint8_t>(ip.family());
  fixed->ndm_ifindex = index;
  request.put(NDA_DST, ip);
  bool known = false;
  const int err = TRY(exchange(request.get(), [&](const nlmsghdr* message) {
    const auto record = payload_of(message);
    ndmsg entry{};
    if (message->nlmsg_type != RTM_NEWNEIGH || record.size() < sizeof(entry)) return;
    std::memcpy(&entry, record.data(), sizeof(entry));
    constexpr unsigned kUsable =
        NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;
    known = (entry.ndm_state & kUsable) != 0;
  }));
  if (err != 0 && err != ENOENT) return fail_errno("look up neighbour", on_device(ip, index), err);
  return known;
}

Status Netlink::resolve_neighbour(const IpAddress& ip, int index, std::chrono::milliseconds limit) {
  if (TRY(neighbour_known(ip, index))) return {};
  const Netlink listener = TRY(listen(RTNLGRP_NEIGH));
  Request request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
  auto* fixed = request.extra<ndmsg>();
  fixed->ndm_family = static_cast<uint8_t>(ip.family());
  fixed->ndm_ifindex = index;
  fixed->ndm_state = NUD_NONE;
  fixed->ndm_flags = NTF_USE;
  request.put(NDA_DST, ip);
  TRY(change(request.get(), "resolve neighbour", on_device(ip, index), {}));
  if (TRY(await(listener, limit, [&] { return neighbour_known(ip, index); }))) return {};
  return fail(ErrorKind::kTimeout, "resolve neighbour", on_device(ip, index),
              "nobody answers for the destination's address; is it up, on the same network?");
}

Result<Netlink> Netlink::listen(int group) {
  Netlink listener = TRY(Netlink::open());
  if (mnl_socket_setsockopt(listener.socket_.get(), NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) == 0) {
    return listener;
  }
  return fail_errno("listen to netlink group", std::to_string(group));
}

Result<bool> Netlink::await(const Netlink& listener, std::chrono::milliseconds limit,
                            const std::function<Result<bool>()>& condition) {
  const Nanos end = monotonic_now() + limit;
  while (!TRY(condition())) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - monotonic_now());
    pollfd wait{mnl_socket_get_fd(listener.socket_.get()), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&wait, 1, static_cast<int>(left.count())) == 0) return false;
    std::array<char, 8192> ignored;
    while (::recv(wait.fd, ignored.data(), ignored.size(), MSG_DONTWAIT) > 0) {
    }
  }
  return true;
}

}  // namespace godwit::address
