// How a page travels: what encoder and decoder agree on. The numbers are part of the stream format; never
// reuse one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/units.h"

namespace godwit::codec {

enum class PageEncoding : uint8_t {
  kInvalid = 0,
  kZero = 1,       ///< no payload: all bytes are zero
  kRaw = 2,        ///< the page itself, kPageSize bytes
  kXbzrle = 3,     ///< the hash of the base (little endian, kBaseHashSize bytes), then the delta (xbzrle.h)
  kUnchanged = 4,  ///< the destination holds the page already. Never travels; a decoder refuses it
};

constexpr size_t kBaseHashSize = 4;
constexpr size_t kMaxPayload = kPageSize;  ///< no encoding is ever larger than the page

/// The low 32 bits of XXH3-64 over the old version of a page, which a delta is relative to. It makes a base
/// that the two sides do not share an error instead of silent corruption. Against accidents, not against an
/// attacker.
uint32_t base_hash(std::span<const std::byte, kPageSize> base);

}  // namespace godwit::codec
