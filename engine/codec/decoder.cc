#include "engine/codec/decoder.h"

#include <fmt/format.h>

#include <cstring>

#include "engine/codec/xbzrle.h"

namespace godwit::codec {
namespace {

Error corrupt(std::string_view what, std::span<const std::byte> payload) {
  return fail(ErrorKind::kCorrupt, fmt::format("decode a page: {}", what),
              fmt::format("a payload of {} bytes", payload.size()),
              "the stream is damaged, or the two engines differ in version");
}

uint32_t get_le32(const std::byte* in) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= std::to_integer<uint32_t>(in[i]) << (8 * i);
  return value;
}

Status decode_delta(std::span<const std::byte> payload, std::span<std::byte, kPageSize> page) {
  if (payload.size() <= kBaseHashSize) return corrupt("a delta without a change", payload);
  const uint32_t sent = get_le32(payload.data());
  const uint32_t held = base_hash(page);
  if (sent != held) {
    return corrupt(fmt::format("a delta against base {:08x}, but the page here is {:08x}", sent, held),
                   payload);
  }
  Result<size_t> end = decode_xbzrle(payload.subspan(kBaseHashSize), page);
  if (!end.ok()) return end.take_error();
  return {};
}

}  // namespace

Status decode_page(PageEncoding encoding, std::span<const std::byte> payload,
                   std::span<std::byte, kPageSize> page) {
  switch (encoding) {
    case PageEncoding::kZero:
      if (!payload.empty()) return corrupt("a zero page carries a payload", payload);
      std::memset(page.data(), 0, page.size());
      return {};
    case PageEncoding::kRaw:
      if (payload.size() != kPageSize) return corrupt("a raw page is not one page long", payload);
      std::memcpy(page.data(), payload.data(), kPageSize);
      return {};
    case PageEncoding::kXbzrle:
      return decode_delta(payload, page);
    case PageEncoding::kUnchanged:
      return corrupt("an unchanged page never travels", payload);
    case PageEncoding::kInvalid:
      break;
  }
  return corrupt(fmt::format("unknown encoding {}", static_cast<unsigned>(encoding)), payload);
}

}  // namespace godwit::codec
