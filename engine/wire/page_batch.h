// A batch of pages as it lies in a `pages` or `object_pages` record: a header, a table of entries, then the
// entries' payloads back to back in the order of the table. One entry stands for a run of consecutive pages,
// so the destination installs a raw or a zero run with one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/base/units.h"
#include "engine/model/address_range.h"
#include "engine/wire/little_endian.h"

namespace godwit::wire {

enum class PageEncoding : uint8_t {
  kInvalid = 0,
  kZero,    ///< no payload, the pages hold zeros
  kRaw,     ///< pages * 4096 bytes
  kXbzrle,  ///< the difference to what was last sent of this page; one page an entry, shorter than the page
};
std::string_view to_string(PageEncoding encoding);

struct PageBatchHeader {
  Le64 owner;  ///< pages: index of the process in the inventory's tree; object_pages: id of the memory object
  Le32 entries;
  Le32 reserved;  ///< 0
};
static_assert(sizeof(PageBatchHeader) == 16);

struct PageTableEntry {
  Le64 at;      ///< pages: the address; object_pages: the byte offset. A multiple of 4096
  Le32 length;  ///< of the payload, bytes
  Le16 pages;   ///< length of the run, at least 1
  uint8_t encoding;
  uint8_t flags;  ///< 0
};
static_assert(sizeof(PageTableEntry) == 16);

constexpr size_t kBatchPayload = 1 << 20;  ///< bytes of payload a batch holds at most: 256 raw pages
constexpr size_t kBatchEntries = 4096;     ///< entries a batch holds at most
constexpr size_t kRunPages = 0xffff;       ///< pages of one entry at most (256 MiB of zeros)
constexpr size_t kBatchRecord =
    sizeof(PageBatchHeader) + kBatchEntries * sizeof(PageTableEntry) + kBatchPayload;
/// The largest byte offset into a memory object: off_t.
constexpr uint64_t kMaxObjectEnd = uint64_t{1} << 63;

/// One run as the reader hands it out.
struct PageEntry {
  uint64_t at = 0;  ///< address or byte offset
  size_t pages = 0;
  PageEncoding encoding = PageEncoding::kInvalid;
  std::span<const std::byte> payload;  ///< lives as long as the record

  [[nodiscard]] size_t bytes() const { return pages * kPageSize; }
  [[nodiscard]] AddressRange range() const { return {RemoteAddr(at), RemoteAddr(at + bytes())}; }
};

}  // namespace godwit::wire
