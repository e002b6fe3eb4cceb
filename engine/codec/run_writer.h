// The second half of the delta encoder: from the runs of a diff mask to the bytes of a delta (xbzrle.h has
// the format). Behind diff() and before the wire; pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/codec/diff_mask.h"

namespace godwit::codec {

constexpr size_t kMaxLengthBytes = 2;                ///< of a run's length in a delta
constexpr size_t kMaxLength = (1 << 14) - 1;         ///< the longest run that two bytes describe
constexpr size_t kNoRoom = static_cast<size_t>(-1);  ///< the delta does not fit

/// Writes the delta of `page` into `out` and returns its size, or kNoRoom exactly where QEMU's encoder gives
/// up. `count` and `mask` are what diff() said of the page; no run is longer than kMaxLength. Never writes
/// past `out`; what is behind the delta may be overwritten.
size_t write_delta(const DiffMask& mask, DiffCount count, std::span<const std::byte> page,
                   std::span<std::byte> out);

/// One way to write the runs, for tests and benches: all of them give the same bytes.
struct RunWriter {
  std::string_view name;
  size_t (*write)(const DiffMask& mask, DiffCount count, std::span<const std::byte> page,
                  std::span<std::byte> out);
};

/// Those that this CPU runs, the slowest first. Never empty.
std::span<const RunWriter> run_writers();

}  // namespace godwit::codec
