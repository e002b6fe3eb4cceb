// How pages travelled, counted.
#pragma once

#include <cstdint>

namespace godwit::migration {

struct PageCounts {
  uint64_t sent = 0;  ///< pages that travelled in any form
  uint64_t zero = 0;
  uint64_t xbzrle = 0;
  uint64_t raw = 0;
  uint64_t unchanged = 0;  ///< written, but equal to what the destination holds
  uint64_t discarded = 0;  ///< gone at the source after they were sent

  PageCounts& operator+=(const PageCounts& other) {
    sent += other.sent;
    zero += other.zero;
    xbzrle += other.xbzrle;
    raw += other.raw;
    unchanged += other.unchanged;
    discarded += other.discarded;
    return *this;
  }
  /// What came since `earlier`.
  [[nodiscard]] PageCounts since(const PageCounts& earlier) const {
    return {sent - earlier.sent, zero - earlier.zero,           xbzrle - earlier.xbzrle,
            raw - earlier.raw,   unchanged - earlier.unchanged, discarded - earlier.discarded};
  }
};

/// What travelled compressed.
struct PackedCounts {
  uint64_t lz4 = 0, zstd = 0;  ///< batches
  uint64_t pages = 0;          ///< whole pages in them
  uint64_t bytes = 0;          ///< of these batches, had they gone plain
  uint64_t wire = 0;           ///< and as they went

  PackedCounts& operator+=(const PackedCounts& other) {
    lz4 += other.lz4;
    zstd += other.zstd;
    pages += other.pages;
    bytes += other.bytes;
    wire += other.wire;
    return *this;
  }
};

}  // namespace godwit::migration
