// A half-open range of addresses in another process, and small sorted sets of them.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/base/units.h"
#include "engine/model/remote_addr.h"

namespace godwit {

struct AddressRange {
  RemoteAddr start;
  RemoteAddr end;

  [[nodiscard]] constexpr uint64_t size() const { return end - start; }
  [[nodiscard]] constexpr uint64_t pages() const { return size() >> kPageShift; }
  [[nodiscard]] constexpr bool empty() const { return start >= end; }
  [[nodiscard]] constexpr bool contains(RemoteAddr a) const { return start <= a && a < end; }
  [[nodiscard]] constexpr bool contains(AddressRange r) const { return start <= r.start && r.end <= end; }
  [[nodiscard]] constexpr bool overlaps(AddressRange r) const { return start < r.end && r.start < end; }
  constexpr bool operator==(const AddressRange&) const = default;
};

constexpr AddressRange range_of(uint64_t start, uint64_t end) {
  return {RemoteAddr(start), RemoteAddr(end)};
}
constexpr AddressRange intersect(AddressRange a, AddressRange b) {
  return {std::max(a.start, b.start), std::max(std::max(a.start, b.start), std::min(a.end, b.end))};
}

}  // namespace godwit

template <>
struct fmt::formatter<godwit::AddressRange> : fmt::formatter<std::string_view> {
  auto format(godwit::AddressRange r, fmt::format_context& ctx) const {
    return fmt::format_to(ctx.out(), "{:x}-{:x}", r.start.value(), r.end.value());
  }
};
