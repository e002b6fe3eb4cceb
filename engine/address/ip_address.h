// An IPv4 or IPv6 address, and the service address that moves with a process: values without a socket.
// Used by every file of this folder and by the command line. Thread-safe (plain values).
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace godwit::address {

enum class Family : uint8_t { kInvalid = 0, kInet = AF_INET, kInet6 = AF_INET6 };

class IpAddress {
 public:
  IpAddress() = default;
  /// "10.0.0.5", "fd00::5". Errors: Usage.
  static Result<IpAddress> parse(std::string_view text);
  /// Nothing but 4 or 16 bytes in network order makes an address. Errors: Corrupt.
  static Result<IpAddress> from_bytes(std::span<const std::byte> bytes);

  [[nodiscard]] Family family() const { return family_; }
  [[nodiscard]] bool valid() const { return family_ != Family::kInvalid; }
  [[nodiscard]] size_t size() const { return family_ == Family::kInet ? 4 : 16; }
  [[nodiscard]] unsigned bits() const { return static_cast<unsigned>(size() * 8); }
  /// Network order; lives as long as this object.
  [[nodiscard]] std::span<const std::byte> bytes() const { return {bytes_.data(), size()}; }
  [[nodiscard]] std::string to_string() const;
  /// True when the first `length` bits of both are equal (and the families are).
  [[nodiscard]] bool same_prefix(const IpAddress& other, unsigned length) const;
  bool operator==(const IpAddress&) const = default;

 private:
  Family family_ = Family::kInvalid;
  std::array<std::byte, 16> bytes_{};
};

/// "10.0.0.5/24@eth0": an address, the prefix it is configured with and the device that carries it.
struct ServiceAddress {
  IpAddress ip;
  uint8_t prefix_length = 0;
  std::string device;

  /// The prefix may be left out (/32, /128); the device may not. Errors: Usage.
  static Result<ServiceAddress> parse(std::string_view text);
  [[nodiscard]] std::string to_string() const;
  bool operator==(const ServiceAddress&) const = default;
};

/// A name that the kernel would take for an interface: 1 to 15 bytes, no '/' and no blank, not "." or "..".
bool is_device_name(std::string_view name);

}  // namespace godwit::address
