// Tells a network that an address lives at this host now: gratuitous ARP (IPv4) or an unsolicited neighbour
// advertisement (IPv6). Peers and bridges then send here instead of to the host that had the address before.
//
// Place: the destination of an address move, right after the address was added. Thread: any; no state is
// kept.
#pragma once

#include "engine/address/netlink.h"
#include "engine/base/result.h"

namespace godwit::address {

/// Sends both forms that receivers are known to heed (an ARP request and an ARP reply about oneself), or one
/// advertisement with the override flag. The address must be configured already. Does nothing on a device
/// that speaks neither (no Ethernet address). Errors: Denied, System.
Status announce(const IpAddress& ip, const Link& link);

}  // namespace godwit::address
