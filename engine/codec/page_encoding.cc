#include "engine/codec/page_encoding.h"

#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // the library picks AVX2 or AVX-512 at run time; the plain entry point is SSE2

#include "engine/base/xxh3.h"
#else
#endif

namespace godwit::codec {

uint32_t base_hash(std::span<const std::byte, kPageSize> base) {
  return static_cast<uint32_t>(XXH3_64bits(base.data(), base.size()));
}

}  // namespace godwit::codec
