// XBZRLE: a page as its difference from an older version of itself, byte for byte QEMU's format (10.2).
//
//     delta  = pair*              a page without a difference has no delta
//     pair   = zrun nzrun bytes   skip `zrun` equal bytes, then take `nzrun` new bytes
//     zrun, nzrun: ULEB128 of one or two bytes; nzrun > 0; zrun > 0 in every pair but the first
//
// The run of equal bytes behind the last pair is not sent. Encoder and decoder of pages stand on this file;
// what they add (a hash of the base, the choice between delta and whole page) is theirs. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.h"

namespace godwit::codec {

enum class DeltaOutcome : uint8_t {
  kInvalid = 0,
  kUnchanged,  ///< old and new are equal
  kOverflow,   ///< the delta does not fit; what `out` holds now is garbage
  kEncoded,    ///< `size` bytes of `out` are the delta
};

struct DeltaResult {
  DeltaOutcome outcome = DeltaOutcome::kInvalid;
  size_t size = 0;  ///< bytes of the delta, 0 unless kEncoded
  bool operator==(const DeltaResult&) const = default;
};

/// `old_bytes` and `new_bytes` have the same size, at most kMaxBlock (diff_mask.h), and do not change
/// meanwhile. Never writes past `out`. Overflows exactly where QEMU does: among other cases whenever fewer
/// than two bytes of room are left while bytes of the page still are, even if those are all equal.
DeltaResult encode_xbzrle(std::span<const std::byte> old_bytes, std::span<const std::byte> new_bytes,
                          std::span<std::byte> out);

/// Turns the old page in `page` into the new one; returns the end of the last run as an offset into it (0 for
/// an empty delta). All or nothing: the whole delta is checked before the first byte of `page` is written.
/// Errors: Corrupt, naming the offset in the delta and the rule it breaks.
Result<size_t> decode_xbzrle(std::span<const std::byte> delta, std::span<std::byte> page);

}  // namespace godwit::codec
