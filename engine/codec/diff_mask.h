// Where two blocks of bytes differ, as one bit a byte. The delta encoder walks runs in this mask instead of
// in the bytes: comparing is then a straight pass for the vector unit, and a run of any shape costs two bit
// scans. Pure; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace godwit::codec {

constexpr size_t kMaxBlock = 16384;  ///< bytes; the largest block that a mask describes

/// Bit i % 64 of word i / 64 is set if byte i differs. Words behind the last byte are left as they were; bits
/// behind it in its own word are 0. Not zeroed on construction: diff() writes what list_edges() reads.
struct DiffMask {
  std::array<uint64_t, kMaxBlock / 64> words;
  /// Bit i % 64 of word i / 64 is set if in word i of `words` a run begins, or ends behind the byte before
  /// it: a page with few changes has few of them. As complete as `words`.
  std::array<uint64_t, kMaxBlock / 64 / 64> with_edges;
};

struct DiffCount {
  size_t bytes = 0;  ///< bytes that differ
  size_t runs = 0;   ///< maximal runs of such bytes
  bool operator==(const DiffCount&) const = default;
};

/// One implementation. `size` is at most kMaxBlock; neither pointer need be aligned.
struct DiffKernel {
  std::string_view name;
  DiffCount (*diff)(const std::byte* a, const std::byte* b, size_t size, DiffMask& mask);
};

/// Those that this CPU runs, the slowest first. Never empty.
std::span<const DiffKernel> diff_kernels();

/// The fastest of them.
DiffCount diff(const std::byte* a, const std::byte* b, size_t size, DiffMask& mask);

/// Where runs start and end, in order: a start, the end (one past its last byte), the next start, ...
struct DiffEdges {
  std::array<uint16_t, kMaxBlock> at;  ///< not zeroed on construction
};

/// Lists the edges of all runs among the first `size` bytes; returns how many, twice the number of runs.
size_t list_edges(const DiffMask& mask, size_t size, DiffEdges& edges);

}  // namespace godwit::codec
