// Makes this host forget the connections it has tracked for an address.
//
// Place: the end of a departure. A connection that goes on elsewhere leaves an entry here whose window is
// soon stale; should the address come back before the entry expires, a stateful firewall would call its
// packets invalid. Off the hot path: the whole table is read. Thread: any, in the right network namespace.
#pragma once

#include "engine/address/ip_address.h"
#include "engine/base/result.h"

namespace godwit::address {

/// Deletes every tracked connection from or to `ip`. A kernel or host that tracks none is no error.
Status forget_connections(const IpAddress& ip);

}  // namespace godwit::address
