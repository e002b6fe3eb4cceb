// Bytes to a page: the destination's end of the codec, between the reader of records and the installer of
// pages. The payload comes from a peer or an image and is not trusted. Pure; any thread.
#pragma once

#include <cstddef>
#include <span>

#include "engine/base/result.h"
#include "engine/codec/page_encoding.h"

namespace godwit::codec {

/// True if decoding reads the page's old contents, so that the installer must fetch them first.
[[nodiscard]] constexpr bool needs_base(PageEncoding encoding) {
  return encoding == PageEncoding::kXbzrle;
}

/// Turns `page`, which for needs_base() holds what the destination has at that address, into what the source
/// sent. All or nothing: on an error `page` is untouched. `encoding` may be any number a peer sends. Errors:
/// Corrupt: an unknown encoding, a payload of the wrong size, a delta against another base, a malformed
/// delta. The caller adds which page and record it was.
Status decode_page(PageEncoding encoding, std::span<const std::byte> payload,
                   std::span<std::byte, kPageSize> page);

}  // namespace godwit::codec
