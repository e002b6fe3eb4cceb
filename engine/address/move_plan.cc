#include "engine/address/move_plan.h"

#include <dirent.h>
#include <fmt/format.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <memory>
#include <set>

#include "engine/base/files.h"

namespace godwit::address {
namespace {

Error refuse(const Departure& departure, std::string why) {
  return fail(ErrorKind::kRefused, "move address", departure.service.to_string(), std::move(why));
}

Error misuse(const Departure& departure, std::string why) {
  return fail(ErrorKind::kUsage, "move address", departure.service.to_string(), std::move(why));
}

bool leaves(const IpAddress& ip, const std::vector<Departure>& departures) {
  return std::any_of(departures.begin(), departures.end(),
                     [&](const Departure& departure) { return departure.service.ip == ip; });
}

/// This host keeps talking to the destination after the addresses have gone, so another one must span the
/// gateway.
Status check_way_back(const Departure& departure, const std::vector<Departure>& all, int index,
                      Netlink& netlink) {
  const auto addresses = TRY(netlink.addresses(departure.gateway.family(), index));
  const bool stays = std::any_of(addresses.begin(), addresses.end(), [&](const InterfaceAddress& address) {
    return !leaves(address.ip, all) && address.ip.same_prefix(departure.gateway, address.prefix_length);
  });
  if (stays) return {};
  return refuse(departure,
                fmt::format("this host needs an address of its own in the network of {}, one that stays",
                            departure.gateway.to_string()));
}

Status find_routes(LeavingAddress& leaving, const Departure& departure, Netlink& netlink) {
  for (Route& route : TRY(netlink.host_routes(leaving.service.ip))) {
    if (route.protocol != RTPROT_KERNEL) {
      return refuse(departure,
                    "there is a route to it already; `ip route` shows it (an earlier move not undone?)");
    }
    const bool local = route.table == RT_TABLE_LOCAL && route.index == leaving.configured.index;
    if (local && leaving.service.ip.family() == Family::kInet) leaving.local = std::move(route);
  }
  if (leaving.service.ip.family() == Family::kInet && !leaving.local) {
    return refuse(departure, "it has no entry in the local routing table");
  }
  return {};
}

Status find_gateway(LeavingAddress& leaving, const Departure& departure, Netlink& netlink) {
  if (departure.gateway.family() != departure.service.ip.family()) {
    return misuse(departure, "the destination's address must be of the same family");
  }
  const Route way = TRY(netlink.route_to(departure.gateway));
  if (way.type != RTN_UNICAST) return misuse(departure, "the destination must be another host");
  if (way.gateway.valid()) {
    return refuse(departure, fmt::format("{} is not on a network shared with this host: {} lies between",
                                         departure.gateway.to_string(), way.gateway.to_string()));
  }
  leaving.gateway = departure.gateway;
  leaving.route_index = way.index;
  return {};
}

Result<LeavingAddress> plan_one(const Departure& departure, const std::vector<Departure>& all,
                                Netlink& netlink) {
  LeavingAddress leaving;
  leaving.service = departure.service;
  const Link link = TRY(netlink.link(departure.service.device));
  auto addresses = TRY(netlink.addresses(departure.service.ip.family(), link.index));
  const auto found = std::find_if(addresses.begin(), addresses.end(), [&](const InterfaceAddress& address) {
    return address.ip == departure.service.ip;
  });
  if (found == addresses.end()) return misuse(departure, "the device does not have this address");
  leaving.configured = std::move(*found);
  leaving.service.prefix_length = leaving.configured.prefix_length;
  TRY(find_gateway(leaving, departure, netlink));
  TRY(check_way_back(departure, all, leaving.route_index, netlink));
  TRY(find_routes(leaving, departure, netlink));
  return leaving;
}

std::string conf(Family family, std::string_view device, std::string_view setting) {
  return fmt::format("/proc/sys/net/ipv{}/conf/{}/{}", family == Family::kInet ? 4 : 6, device, setting);
}

/// Devices on which packets for the address come in or go out.
Result<std::set<std::string>> devices_of(const LeavingAddress& leaving) {
  char name[IF_NAMESIZE] = {};
  if (::if_indextoname(static_cast<unsigned>(leaving.route_index), name) == nullptr) {
    return fail_errno("name interface", std::to_string(leaving.route_index));
  }
  std::set<std::string> devices = {name, leaving.service.device};
  devices.erase("lo");
  return devices;
}

Result<std::vector<std::string>> ipv6_devices() {
  const std::string path = "/proc/sys/net/ipv6/conf";
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
  if (!directory) return fail_errno("opendir", path);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != ".." && name != "all") names.push_back(name);
  }
  return names;
}

/// Collects changes, each path once.
class SettingList {
 public:
  Status add(const std::string& path, const std::string& during) {
    const bool known = std::any_of(changes_.begin(), changes_.end(),
                                   [&](const SysctlChange& change) { return change.path == path; });
    if (!known) changes_.push_back(TRY(plan_sysctl(path, during)));
    return {};
  }
  std::vector<SysctlChange> take() { return std::move(changes_); }

 private:
  std::vector<SysctlChange> changes_;
};

Status add_ipv4_settings(const LeavingAddress& leaving, SettingList& settings) {
  // KERNEL: redirects are sent when either "all" or the device says so.
  TRY(settings.add(conf(Family::kInet, "all", "send_redirects"), "0"));
  for (const std::string& device : TRY(devices_of(leaving))) {
    // KERNEL: IPv4 asks the incoming device alone. net.ipv4.ip_forward would also reset accept_redirects.
    TRY(settings.add(conf(Family::kInet, device, "forwarding"), "1"));
    TRY(settings.add(conf(Family::kInet, device, "send_redirects"), "0"));
    // KERNEL: without this, removing a primary address removes every other address of its subnet.
    TRY(settings.add(conf(Family::kInet, device, "promote_secondaries"), "1"));
  }
  return {};
}

Status add_ipv6_settings(const LeavingAddress& leaving, SettingList& settings) {
  for (const std::string& device : TRY(devices_of(leaving))) {
    // KERNEL: since 6.17 one device alone can forward.
    if (Status added = settings.add(conf(Family::kInet6, device, "force_forwarding"), "1"); added.ok())
      continue;
    for (const SysctlChange& change : TRY(plan_forwarding_for_all()))
      TRY(settings.add(change.path, change.during));
  }
  return {};
}

}  // namespace

Result<std::vector<LeavingAddress>> plan_leaving(const std::vector<Departure>& departures, Netlink& netlink) {
  if (departures.empty()) return fail(ErrorKind::kUsage, "move addresses", "none", "name one");
  std::vector<LeavingAddress> leaving;
  for (const Departure& departure : departures) {
    const auto same = [&](const LeavingAddress& other) { return other.service.ip == departure.service.ip; };
    if (std::any_of(leaving.begin(), leaving.end(), same)) return misuse(departure, "it is named twice");
    leaving.push_back(TRY(plan_one(departure, departures, netlink)));
  }
  // KERNEL: a local route can be restored only while its preferred source is local; primaries are their own,
  // so they leave last and come back first.
  std::stable_partition(leaving.begin(), leaving.end(), [](const LeavingAddress& one) {
    return one.local && one.local->preferred_source.valid() &&
           !(one.local->preferred_source == one.service.ip);
  });
  return leaving;
}

Result<std::vector<SysctlChange>> plan_sysctls(const std::vector<LeavingAddress>& leaving) {
  SettingList settings;
  // KERNEL: early demultiplexing attaches a packet to the frozen original's socket, and forwarding drops such
  // packets. The setting of IPv4 serves IPv6 as well.
  TRY(settings.add("/proc/sys/net/ipv4/tcp_early_demux", "0"));
  TRY(settings.add("/proc/sys/net/ipv4/udp_early_demux", "0"));
  for (const LeavingAddress& one : leaving) {
    if (one.service.ip.family() == Family::kInet) {
      TRY(add_ipv4_settings(one, settings));
    } else {
      TRY(add_ipv6_settings(one, settings));
    }
  }
  return settings.take();
}

Result<std::vector<SysctlChange>> plan_forwarding_for_all() {
  std::vector<SysctlChange> changes;
  for (const std::string& device : TRY(ipv6_devices())) {
    // KERNEL: a router ignores router advertisements and forgets the default routes it learnt from them,
    // unless accept_ra is 2.
    SysctlChange accept = TRY(plan_sysctl(conf(Family::kInet6, device, "accept_ra"), "2"));
    if (accept.before == "1") changes.push_back(std::move(accept));
    // Only to be put back: switching "all" switches every device.
    changes.push_back(TRY(plan_sysctl(conf(Family::kInet6, device, "forwarding"), "1")));
    changes.back().during = changes.back().before;
  }
  changes.push_back(TRY(plan_sysctl(conf(Family::kInet6, "all", "forwarding"), "1")));
  return changes;
}

}  // namespace godwit::address
