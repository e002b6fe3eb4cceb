#include "engine/migration/clock_sync.h"

#include <fmt/format.h>

#include "engine/base/clock.h"
#include "engine/base/files.h"

namespace godwit::migration {
namespace {

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id");
  return text.ok() ? std::string(trim(*text)) : std::string();
}

constexpr int kPings = 5;

}  // namespace

/// /proc/PID/timens_offsets: "monotonic  SECONDS NANOSECONDS", the same for boottime.
ClockOffsets clock_offsets(const std::string& path) {
  ClockOffsets offsets;
  auto text = read_file(path);
  if (!text.ok()) return offsets;
  const auto parse = [&](std::string_view key) -> int64_t {
    const auto parts = split(field(*text, key).value_or(""), ' ');
    if (parts.size() != 2) return 0;
    const bool negative = parts[0].starts_with('-');
    const auto seconds = static_cast<int64_t>(parse_number(parts[0].substr(negative ? 1 : 0)).value_or(0));
    const auto nanos = static_cast<int64_t>(parse_number(parts[1]).value_or(0));
    return (negative ? -seconds : seconds) * 1'000'000'000 + nanos;
  };
  offsets.monotonic = parse("monotonic");
  offsets.boottime = parse("boottime");
  return offsets;
}

wire::Clock answer_clock(const wire::Clock& ping) {
  wire::Clock pong = ping;
  const ClockOffsets own = clock_offsets("/proc/self/timens_offsets");
  pong.set_boot_id(boot_id());
  pong.set_monotonic_namespace_offset(own.monotonic);
  pong.set_boottime_namespace_offset(own.boottime);
  pong.set_answered(read_clock(CLOCK_REALTIME).count());
  pong.set_answered_monotonic(read_clock(CLOCK_MONOTONIC).count());
  pong.set_answered_boottime(read_clock(CLOCK_BOOTTIME).count());
  return pong;
}

Status add_clock_offsets(Link& link, const tracee::Process& process, wire::Inventory& inventory) {
  const ClockOffsets target = clock_offsets(process.path("timens_offsets"));
  const ClockOffsets own = clock_offsets("/proc/self/timens_offsets");
  Nanos best = Nanos::max();
  for (int i = 0; i < kPings; ++i) {
    wire::Clock ping;
    ping.set_id(static_cast<uint32_t>(i));
    const Nanos sent = monotonic_now();
    ping.set_sent(read_clock(CLOCK_REALTIME).count());
    TRY(link.control().write_message(wire::RecordType::kClockPing, ping));
    TRY(link.control().flush());
    const auto pong = TRY(wire::parse<wire::Clock>(TRY(link.await(wire::RecordType::kClockPong))));
    const Nanos monotonic = monotonic_now(), boottime = read_clock(CLOCK_BOOTTIME);
    if (pong.boot_id() == boot_id()) {
      inventory.set_monotonic_offset(target.monotonic - pong.monotonic_namespace_offset());
      inventory.set_boottime_offset(target.boottime - pong.boottime_namespace_offset());
      return {};
    }
    if (monotonic - sent >= best) continue;
    best = monotonic - sent;
    // What the process reads now, against what the peer read at some time before: never behind the truth.
    inventory.set_monotonic_offset(monotonic.count() - own.monotonic + target.monotonic -
                                   pong.answered_monotonic());
    inventory.set_boottime_offset(boottime.count() - own.boottime + target.boottime -
                                  pong.answered_boottime());
  }
  return {};
}

Status add_clock_values(const tracee::Process& process, wire::Inventory& inventory) {
  const ClockOffsets target = clock_offsets(process.path("timens_offsets"));
  const ClockOffsets own = clock_offsets("/proc/self/timens_offsets");
  inventory.set_monotonic_offset(monotonic_now().count() - own.monotonic + target.monotonic);
  inventory.set_boottime_offset(read_clock(CLOCK_BOOTTIME).count() - own.boottime + target.boottime);
  return {};
}

}  // namespace godwit::migration
