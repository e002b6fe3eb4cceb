#include "engine/codec/page_encoding.h"

#include "engine/base/xxh3.h"

namespace godwit::codec {

uint32_t base_hash(std::span<const std::byte, kPageSize> base) {
  return static_cast<uint32_t>(XXH3_64bits(base.data(), base.size()));
}

}  // namespace godwit::codec
