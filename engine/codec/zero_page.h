// Is a page all zeros? The first question of the encoder: a zero page travels as a record without payload.
// Pure; any thread.
#pragma once

#include <cstddef>
#include <span>

#include "engine/base/units.h"

namespace godwit::codec {

/// Reads no more than the first block that is not zero. `page` need not be aligned.
[[nodiscard]] bool is_zero_page(std::span<const std::byte, kPageSize> page);

}  // namespace godwit::codec
