// An address in another process. Not a pointer: it cannot be dereferenced by mistake.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>

namespace godwit {

class RemoteAddr {
 public:
  constexpr RemoteAddr() = default;
  constexpr explicit RemoteAddr(uint64_t value) : value_(value) {}
  [[nodiscard]] constexpr uint64_t value() const { return value_; }
  constexpr auto operator<=>(const RemoteAddr&) const =
      default;  // NOLINT(modernize-use-nullptr): the tool's error
  constexpr RemoteAddr operator+(uint64_t n) const { return RemoteAddr(value_ + n); }
  constexpr uint64_t operator-(RemoteAddr o) const { return value_ - o.value_; }

 private:
  uint64_t value_ = 0;
};

}  // namespace godwit

template <>
struct fmt::formatter<godwit::RemoteAddr> : fmt::formatter<std::string_view> {
  auto format(godwit::RemoteAddr a, fmt::format_context& ctx) const {
    return fmt::format_to(ctx.out(), "{:#x}", a.value());
  }
};
