// The packet filter rules of an address move, set with whichever xtables tool works on this host.
//
//   mangle PREROUTING   -d ADDRESS -j NFQUEUE --queue-bypass     packets pass through (or wait in) our queue
//   filter FORWARD      -d ADDRESS -j ACCEPT                     only where a firewall filters forwarded
//   packets raw    PREROUTING   -d ADDRESS not local -j CT --notrack     only where connections are tracked
//
// The last one sleeps until the address has left the local routing table: packets on their way through this
// host to the destination show connection tracking half of a conversation, which it would call invalid (or
// even translate).
//
// Off the hot path: each call spawns a process, some milliseconds. Thread: any, in the right network
// namespace.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/address/ip_address.h"
#include "engine/base/result.h"

namespace godwit::address {

struct PacketRule {
  std::string tool;    ///< "iptables", "ip6tables-legacy", ...
  std::string table;   ///< "mangle"
  std::string chain;   ///< "PREROUTING"
  bool first = false;  ///< goes before the chain's other rules instead of after them
  std::vector<std::string> specification;
  bool operator==(const PacketRule&) const = default;
};

/// What to insert for these addresses; nothing is changed. The tool is chosen by a try in an empty network
/// namespace. Errors: Unsupported when no tool can set an NFQUEUE rule on this kernel.
Result<std::vector<PacketRule>> plan_rules(std::span<const IpAddress> addresses, uint16_t queue);
Status insert(const PacketRule& rule);
/// A rule that is not there is no error.
Status remove(const PacketRule& rule);

/// True for the tools that plan_rules() may choose: a rule read from a file runs nothing else.
bool is_rule_tool(std::string_view name);

}  // namespace godwit::address
