#include "engine/address/ip_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "engine/base/files.h"

namespace godwit::address {

Result<IpAddress> IpAddress::parse(std::string_view text) {
  const std::string terminated(text);
  IpAddress address;
  address.family_ = text.find(':') == std::string_view::npos ? Family::kInet : Family::kInet6;
  if (inet_pton(static_cast<int>(address.family_), terminated.c_str(), address.bytes_.data()) != 1) {
    return fail(ErrorKind::kUsage, "parse IP address", fmt::format("\"{}\"", text),
                "write 10.0.0.5 or fd00::5");
  }
  return address;
}

Result<IpAddress> IpAddress::from_bytes(std::span<const std::byte> bytes) {
  if (bytes.size() != 4 && bytes.size() != 16) {
    return fail(ErrorKind::kCorrupt, "read IP address", fmt::format("{} bytes", bytes.size()),
                "an address has 4 or 16");
  }
  IpAddress address;
  address.family_ = bytes.size() == 4 ? Family::kInet : Family::kInet6;
  std::copy(bytes.begin(), bytes.end(), address.bytes_.begin());
  return address;
}

std::string IpAddress::to_string() const {
  if (!valid()) return "(no address)";
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(static_cast<int>(family_), bytes_.data(), text, sizeof(text));
  return text;
}

bool IpAddress::same_prefix(const IpAddress& other, unsigned length) const {
  if (family_ != other.family_ || length > bits()) return false;
  const size_t whole = length / 8;
  if (std::memcmp(bytes_.data(), other.bytes_.data(), whole) != 0) return false;
  const unsigned rest = length % 8;
  if (rest == 0) return true;
  const auto mask = static_cast<std::byte>(0xff << (8 - rest));
  return (bytes_[whole] & mask) == (other.bytes_[whole] & mask);
}

bool is_device_name(std::string_view name) {
  if (name.empty() || name.size() >= IFNAMSIZ || name == "." || name == "..") return false;
  return std::none_of(name.begin(), name.end(), [](char c) {
    return c == '/' || c == ':' || std::isspace(static_cast<unsigned char>(c)) || c == '\0';
  });
}

Result<ServiceAddress> ServiceAddress::parse(std::string_view text) {
  const auto refuse = [&](const char* why) {
    return fail(ErrorKind::kUsage, "parse service address", fmt::format("\"{}\"", text), why);
  };
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return refuse("name its device: 10.0.0.5/24@eth0");
  ServiceAddress service;
  service.device = text.substr(at + 1);
  if (!is_device_name(service.device)) return refuse("what follows @ is not a device name");
  const std::string_view with_prefix = text.substr(0, at);
  const size_t slash = std::min(with_prefix.find('/'), with_prefix.size());
  service.ip = TRY(IpAddress::parse(with_prefix.substr(0, slash)));
  service.prefix_length = static_cast<uint8_t>(service.ip.bits());
  if (slash < with_prefix.size()) {
    const auto length = parse_number(with_prefix.substr(slash + 1));
    if (!length || *length == 0 || *length > service.ip.bits())
      return refuse("the prefix length is out of range");
    service.prefix_length = static_cast<uint8_t>(*length);
  }
  return service;
}

std::string ServiceAddress::to_string() const {
  return fmt::format("{}/{}@{}", ip.to_string(), prefix_length, device);
}

}  // namespace godwit::address
