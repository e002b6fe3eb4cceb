// Addresses, routes and links over one rtnetlink socket: no process is spawned, an operation is one system
// call pair of some tens of microseconds. Used by both ends of an address move, inside and outside the
// freeze.
//
// What must be put back later is kept as the kernel's own record of it (KernelRecord): replaying those bytes
// restores every attribute, known to this engine or not.
//
// Thread: not thread-safe; the socket belongs to the network namespace of the thread that called open().
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/address/ip_address.h"
#include "engine/base/result.h"

struct mnl_socket;
struct nlmsghdr;

namespace godwit::address {

/// The payload of an RTM_NEWADDR or RTM_NEWROUTE message as the kernel dumped it.
using KernelRecord = std::vector<std::byte>;

struct Link {
  int index = 0;
  std::string name;
  std::array<uint8_t, 6> mac{};
  bool has_mac = false;  ///< an Ethernet address, that is, ARP or neighbour discovery can be spoken here
  bool up = false;
  bool loopback = false;
};

struct InterfaceAddress {
  IpAddress ip;
  uint8_t prefix_length = 0;
  int index = 0;
  uint32_t flags = 0;  ///< IFA_F_*
  KernelRecord record;
};

struct Route {
  IpAddress destination;
  uint8_t prefix_length = 0;
  uint32_t table = 0;
  uint8_t protocol = 0;
  uint8_t type = 0;            ///< RTN_*
  IpAddress gateway;           ///< invalid when on link
  IpAddress preferred_source;  ///< invalid when none is named
  int index = 0;               ///< outgoing interface
  KernelRecord record;
};

/// rtm_protocol of every route this engine makes; no routing daemon uses it (see iproute2's rt_protos).
constexpr uint8_t kRouteProtocol = 103;

class Netlink {
 public:
  /// Errors: Denied, System.
  static Result<Netlink> open();

  /// Errors: Usage when there is no such device.
  Result<Link> link(const std::string& name);
  /// Every address of one device, in the kernel's order (the order of `ip addr`).
  Result<std::vector<InterfaceAddress>> addresses(Family family, int index);
  /// How a packet of this host to `destination` would leave. Errors: System with errno when there is no
  /// route.
  Result<Route> route_to(const IpAddress& destination);
  /// Every route in any table whose destination is exactly `ip` as a host route.
  Result<std::vector<Route>> host_routes(const IpAddress& ip);

  // The address is in the local routing table when the two that add one return.
  // Each of these says true when it changed something, false when that was so already: all can be repeated.
  Result<bool> add_address(const ServiceAddress& service, int index);
  Result<bool> restore_address(const InterfaceAddress& address);
  Result<bool> remove_address(const IpAddress& ip, uint8_t prefix_length, int index);
  /// `ip` as a host route in the main table by way of `gateway` on device `index` (onlink).
  Result<bool> add_route_via(const IpAddress& ip, const IpAddress& gateway, int index);
  Result<bool> remove_route_via(const IpAddress& ip, const IpAddress& gateway, int index);
  Result<bool> restore_route(const Route& route);
  Result<bool> remove_route(const Route& route);

  /// Makes the kernel resolve `ip` on device `index` and waits until it has, so that no later packet need
  /// wait (or, unanswered, be dropped). Errors: Timeout when nobody answers, System.
  Status resolve_neighbour(const IpAddress& ip, int index, std::chrono::milliseconds limit);

 private:
  struct Close {
    void operator()(mnl_socket* socket) const;
  };
  Result<bool> neighbour_known(const IpAddress& ip, int index);
  /// A socket of its own that hears of every change in a multicast group (RTNLGRP_*).
  static Result<Netlink> listen(int group);
  /// Looks, then waits for the next news from `listener`, until `condition` holds; false when the limit came
  /// first. ORDER: the listener must be older than what brings the change about.
  static Result<bool> await(const Netlink& listener, std::chrono::milliseconds limit,
                            const std::function<Result<bool>()>& condition);
  Result<bool> become_local(nlmsghdr* request, const char* operation, const IpAddress& ip, int index);
  using Handler = std::function<void(const nlmsghdr*)>;
  explicit Netlink(mnl_socket* socket) : socket_(socket) {}
  /// Sends and reads replies up to the acknowledgement or the end of the dump; the errno of the kernel, 0 if
  /// none.
  Result<int> exchange(nlmsghdr* request, const Handler& on_reply);
  /// True on success, false when the kernel's errno is one of `already`, else an error.
  Result<bool> change(nlmsghdr* request, const char* operation, const std::string& subject,
                      std::initializer_list<int> already);
  Result<bool> replay(uint16_t type, uint16_t flags, std::span<const std::byte> record, const char* operation,
                      const std::string& subject, std::initializer_list<int> already);

  std::unique_ptr<mnl_socket, Close> socket_;
  uint32_t sequence_ = 0;
};

/// Takes a kernel's record apart. Errors: Corrupt when it is no address (or route) message.
Result<InterfaceAddress> parse_address_record(std::span<const std::byte> record);
Result<Route> parse_route_record(std::span<const std::byte> record);

}  // namespace godwit::address
