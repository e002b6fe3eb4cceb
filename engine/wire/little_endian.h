// Integers as they lie in a stream: little endian, no alignment. Reading one costs a load.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace godwit::wire {

static_assert(std::endian::native == std::endian::little, "godwit runs on x86-64");

template <typename T>
class Le {
 public:
  Le() = default;
  constexpr Le(T value) : bytes_(std::bit_cast<Bytes>(value)) {}     // NOLINT(google-explicit-constructor)
  constexpr operator T() const { return std::bit_cast<T>(bytes_); }  // NOLINT(google-explicit-constructor)

 private:
  struct Bytes {
    uint8_t at[sizeof(T)];
  };
  Bytes bytes_{};
};

using Le16 = Le<uint16_t>;
using Le32 = Le<uint32_t>;
using Le64 = Le<uint64_t>;

static_assert(sizeof(Le64) == 8 && alignof(Le64) == 1 && std::is_trivially_copyable_v<Le64>);

/// Copies a fixed structure out of bytes that hold at least one. SAFETY: the caller has checked the size.
template <typename T>
T load(const void* bytes) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

}  // namespace godwit::wire
