// Whether whole pages are compressed, as a person may wish it.
#pragma once

#include <cstdint>

namespace godwit::migration {

/// kAuto: where measurement says that it is faster (docs/decisions/compression.md).
enum class Compression : uint8_t { kInvalid = 0, kAuto, kNone, kLz4, kZstd };

}  // namespace godwit::migration
