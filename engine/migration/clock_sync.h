// CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they were: the destination makes a time namespace whose
// clocks continue the process'. The offset is found before the freeze, while both hosts run.
#pragma once

#include "engine/migration/link.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// Pings the peer and fills in the inventory's offsets. Two engines on one kernel share their clocks exactly;
/// else the offset errs by at most one round trip, and always so that the clock never goes back.
Status add_clock_offsets(Link& link, const tracee::Process& process, wire::Inventory& inventory);

/// For an image: what the process' own clocks show now.
Status add_clock_values(const tracee::Process& process, wire::Inventory& inventory);

/// The destination's answer to a ping.
wire::Clock answer_clock(const wire::Clock& ping);

}  // namespace godwit::migration
