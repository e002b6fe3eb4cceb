#include "engine/codec/zero_page.h"

#include <cstdint>
#include <cstring>

namespace godwit::codec {
namespace {

// GCC's own vectors: two SSE2 registers, which every x86-64 has, so nothing needs to be chosen at run time. A
// page with data leaves after its first block; a zero page is bound by memory, where wider registers gain
// nothing.
using Lane = uint64_t __attribute__((vector_size(16)));
constexpr size_t kBlock = 8 * sizeof(Lane);
static_assert(kPageSize % kBlock == 0);

bool is_zero_block(const std::byte* p) {
  Lane lanes[kBlock / sizeof(Lane)];
  std::memcpy(lanes, p, kBlock);
  const Lane any =
      ((lanes[0] | lanes[1]) | (lanes[2] | lanes[3])) | ((lanes[4] | lanes[5]) | (lanes[6] | lanes[7]));
  return (any[0] | any[1]) == 0;
}

}  // namespace

bool is_zero_page(std::span<const std::byte, kPageSize> page) {
  for (size_t i = 0; i < kPageSize; i += kBlock) {
    if (!is_zero_block(page.data() + i)) return false;
  }
  return true;
}

}  // namespace godwit::codec
