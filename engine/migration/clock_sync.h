// CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they were: the destination makes a time namespace whose
// clocks continue the process'. The offset is found before the freeze, while both hosts run.
#pragma once

#include "engine/migration/link.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// What a time namespace adds to the kernel's own clocks, in nanoseconds.
struct ClockOffsets {
  int64_t monotonic = 0, boottime = 0;
};
/// From /proc/PID/timens_offsets; none where there are no time namespaces.
ClockOffsets clock_offsets(const std::string& path);

/// Pings the peer and fills in the inventory's offsets. Two engines on one kernel share their clocks exactly;
/// else the offset errs by at most one round trip, and always so that the clock never goes back.
Status add_clock_offsets(Link& link, const tracee::Process& process, wire::Inventory& inventory);

/// For an image: what the process' own clocks show now.
Status add_clock_values(const tracee::Process& process, wire::Inventory& inventory);

/// The destination's answer to a ping.
wire::Clock answer_clock(const wire::Clock& ping);

}  // namespace godwit::migration
