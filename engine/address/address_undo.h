// Everything an address move changes on one host, written down *before* the first change: whoever holds this
// text can put the host back (or complete the departure) after the engine was killed, at whatever instant.
//
// Place: AddressMoveSource and AddressMoveDestination make it; the engine gives the text to its guardian;
// both the orderly abort and the guardian call the same functions. All of them may be repeated. Thread: any,
// in the right network namespace.
//
// The text, one fact a line (a blank separates words, none contains one):
//   godwit-address-undo 1
//   sysctl PATH BEFORE DURING
//   rule TOOL TABLE CHAIN first|last WORD...
//   leaving ADDRESS/PREFIX@DEVICE via GATEWAY INTERFACE-INDEX RECORD-HEX LOCAL-ROUTE-HEX|-
//   claimed ADDRESS/PREFIX@DEVICE
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/address/ip_address.h"
#include "engine/address/netlink.h"
#include "engine/address/packet_rules.h"
#include "engine/address/sysctl.h"

namespace godwit::address {

/// An address that leaves this host.
struct LeavingAddress {
  ServiceAddress service;
  IpAddress gateway;            ///< the destination's own address, on link
  int route_index = 0;          ///< the interface that leads to it
  InterfaceAddress configured;  ///< as the kernel had it
  std::optional<Route> local;   ///< IPv4: its entry in the local routing table
};

struct AddressUndo {
  std::vector<SysctlChange> sysctls;  ///< in the order they are applied
  std::vector<PacketRule> rules;
  std::vector<LeavingAddress> leaving;  ///< in the order they are handed over
  std::vector<ServiceAddress> claimed;  ///< addresses that this host takes over

  [[nodiscard]] std::string to_text() const;
  /// Checks every field: the text may have been on a disk. Errors: Corrupt, naming the line.
  static Result<AddressUndo> from_text(std::string_view text);
};

/// Puts the host back as it was before the move. Goes on after a failure and reports the first.
Status undo(const AddressUndo& what);
/// The part of undo() that gives leaving addresses back to this host, and tells the network so.
Status undo_leaving(const AddressUndo& what, Netlink& netlink);
/// Completes a move: the leaving addresses go for good, the claimed ones stay, all else is put back. The
/// guardian calls this instead of undo() when the destination runs the process.
Status depart(const AddressUndo& what);
/// The part of depart() that removes leaving addresses from their devices; the way to the destination stays.
Status remove_leaving(const AddressUndo& what, Netlink& netlink);

}  // namespace godwit::address
