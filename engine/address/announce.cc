#include "engine/address/announce.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>

#include "engine/base/fd.h"

namespace godwit::address {
namespace {

Error announce_error(const char* operation, const IpAddress& ip, const Link& link) {
  return fail_errno(operation, fmt::format("{} at {}", ip.to_string(), link.name));
}

ether_arp gratuitous_arp(uint16_t operation, const IpAddress& ip, const Link& link) {
  ether_arp arp{};
  arp.ea_hdr.ar_hrd = htons(ARPHRD_ETHER);
  arp.ea_hdr.ar_pro = htons(ETHERTYPE_IP);
  arp.ea_hdr.ar_hln = ETH_ALEN;
  arp.ea_hdr.ar_pln = 4;
  arp.ea_hdr.ar_op = htons(operation);
  std::memcpy(arp.arp_sha, link.mac.data(), link.mac.size());
  std::memcpy(arp.arp_spa, ip.bytes().data(), sizeof(arp.arp_spa));
  std::memcpy(arp.arp_tpa, ip.bytes().data(), sizeof(arp.arp_tpa));
  // KERNEL: a reply counts as gratuitous only when its target hardware address equals its source.
  if (operation == ARPOP_REPLY) std::memcpy(arp.arp_tha, link.mac.data(), link.mac.size());
  return arp;
}

Status announce_arp(int socket, const IpAddress& ip, const Link& link) {
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = htons(ETH_P_ARP);
  to.sll_ifindex = link.index;
  to.sll_halen = ETH_ALEN;
  std::fill_n(to.sll_addr, ETH_ALEN, static_cast<uint8_t>(0xff));
  for (const uint16_t operation : {uint16_t{ARPOP_REQUEST}, uint16_t{ARPOP_REPLY}}) {
    const ether_arp arp = gratuitous_arp(operation, ip, link);
    if (::sendto(socket, &arp, sizeof(arp), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) < 0) {
      return announce_error("send gratuitous ARP", ip, link);
    }
  }
  return {};
}

struct Advertisement {
  nd_neighbor_advert advert;
  nd_opt_hdr option;
  uint8_t mac[ETH_ALEN];
};

sockaddr_in6 in6(std::span<const std::byte> address, int index) {
  sockaddr_in6 socket_address{};
  socket_address.sin6_family = AF_INET6;
  socket_address.sin6_scope_id = static_cast<uint32_t>(index);
  std::memcpy(&socket_address.sin6_addr, address.data(), sizeof(in6_addr));
  return socket_address;
}

/// KERNEL: ICMPV6_FILTER with every type set keeps the socket from receiving; it only sends.
Status prepare_icmp6(int socket, const IpAddress& ip, const Link& link) {
  icmp6_filter nothing;
  ICMP6_FILTER_SETBLOCKALL(&nothing);
  if (::setsockopt(socket, IPPROTO_ICMPV6, ICMP6_FILTER, &nothing, sizeof(nothing)) == 0) return {};
  return announce_error("filter ICMPv6 socket", ip, link);
}

Status announce_neighbour(int socket, const IpAddress& ip, const Link& link) {
  const int hops = 255;  // RFC 4861: anything else is discarded
  const sockaddr_in6 from = in6(ip.bytes(), link.index);
  if (::setsockopt(socket, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof(hops)) < 0 ||
      ::setsockopt(socket, IPPROTO_IPV6, IPV6_MULTICAST_IF, &link.index, sizeof(link.index)) < 0 ||
      ::bind(socket, reinterpret_cast<const sockaddr*>(&from), sizeof(from)) < 0) {
    return announce_error("set up neighbour advertisement", ip, link);
  }
  Advertisement message{};
  message.advert.nd_na_type = ND_NEIGHBOR_ADVERT;
  message.advert.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
  std::memcpy(&message.advert.nd_na_target, ip.bytes().data(), sizeof(in6_addr));
  message.option.nd_opt_type = ND_OPT_TARGET_LINKADDR;
  message.option.nd_opt_len = 1;  // in units of 8 bytes
  std::memcpy(message.mac, link.mac.data(), link.mac.size());
  in6_addr all_nodes{};
  all_nodes.s6_addr[0] = 0xff;
  all_nodes.s6_addr[1] = 0x02;
  all_nodes.s6_addr[15] = 0x01;
  const sockaddr_in6 to = in6(std::as_bytes(std::span(all_nodes.s6_addr)), link.index);
  if (::sendto(socket, &message, sizeof(message), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) <
      0) {
    return announce_error("send neighbour advertisement", ip, link);
  }
  return {};
}

}  // namespace

Result<Announcer> Announcer::create(const IpAddress& ip, Link link) {
  const bool arp = ip.family() == Family::kInet;
  // Protocol 0: a packet socket that receives nothing.
  Fd socket(arp ? ::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
                : ::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6));
  if (!socket.valid()) return announce_error("open socket for announcing", ip, link);
  if (!arp) TRY(prepare_icmp6(socket.get(), ip, link));
  return Announcer(ip, std::move(link), std::move(socket));
}

Status Announcer::announce() const {
  if (!link_.has_mac) return {};
  return ip_.family() == Family::kInet ? announce_arp(socket_.get(), ip_, link_)
                                       : announce_neighbour(socket_.get(), ip_, link_);
}

}  // namespace godwit::address
