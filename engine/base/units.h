// Units live in types; on x86-64 a page is 4 KiB and this engine moves pages of no other size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace godwit {

constexpr size_t kPageSize = 4096;
constexpr size_t kPageShift = 12;
constexpr uint64_t kUserSpaceEnd = 0x7ffffffff000;  ///< TASK_SIZE of x86-64 with four page-table levels

constexpr uint64_t page_floor(uint64_t a) {
  return a & ~uint64_t{kPageSize - 1};
}
constexpr uint64_t page_ceil(uint64_t a) {
  return page_floor(a + kPageSize - 1);
}

constexpr size_t operator""_KiB(unsigned long long n) {
  return n << 10;
}
constexpr size_t operator""_MiB(unsigned long long n) {
  return n << 20;
}

}  // namespace godwit
