// What an address move will need to change on the source, found out without changing anything.
// Place: AddressMoveSource::plan(). Thread: any, in the right network namespace.
#pragma once

#include <vector>

#include "engine/address/address_move.h"
#include "engine/address/address_undo.h"
#include "engine/address/netlink.h"

namespace godwit::address {

/// Looks each departure up. Errors as AddressMoveSource::plan().
Result<std::vector<LeavingAddress>> plan_leaving(const std::vector<Departure>& departures, Netlink& netlink);

/// The settings under which this host routes packets for the addresses on to their gateways, in the order of
/// applying.
Result<std::vector<SysctlChange>> plan_sysctls(const std::vector<LeavingAddress>& leaving);

/// IPv6 forwarding on kernels that can only switch it for the whole host. Public for its test.
Result<std::vector<SysctlChange>> plan_forwarding_for_all();

}  // namespace godwit::address
