#include "engine/wire/page_batch_reader.h"

#include <fmt/format.h>

#include <limits>

namespace godwit::wire {

namespace {

Error bad_entry(const Record& record, size_t index, std::string what) {
  return fail(ErrorKind::kCorrupt, fmt::format("reading entry {}: {}", index, what), record.name());
}

/// What the payload of one entry may be long, from its encoding alone.
bool length_fits(PageEncoding encoding, size_t length, size_t pages) {
  const size_t full = pages * kPageSize;
  switch (encoding) {
    case PageEncoding::kZero:
      return length == 0;
    case PageEncoding::kRaw:
      return length == full;
    case PageEncoding::kXbzrle:
      return length > 0 && length < full && pages == 1;
    case PageEncoding::kInvalid:
      break;
  }
  return false;
}

Status check_entry(const Record& record, size_t index, const PageTableEntry& entry, uint64_t end) {
  const auto encoding = static_cast<PageEncoding>(entry.encoding);
  const uint64_t at = entry.at;
  const uint64_t bytes = uint64_t{entry.pages} * kPageSize;
  if (at % kPageSize != 0) return bad_entry(record, index, fmt::format("{:#x} is not page aligned", at));
  if (bytes == 0) return bad_entry(record, index, "no pages");
  if (at >= end || bytes > end - at)
    return bad_entry(record, index, fmt::format("{} pages at {:#x} end beyond {:#x}", +entry.pages, at, end));
  if (encoding == PageEncoding::kInvalid || encoding > PageEncoding::kXbzrle || entry.flags != 0)
    return fail(ErrorKind::kUnsupported,
                fmt::format("reading entry {}: encoding {}, flags {:#x}", index, entry.encoding, entry.flags),
                record.name(), "the other engine is newer; use the same version on both sides");
  if (!length_fits(encoding, entry.length, entry.pages))
    return bad_entry(record, index,
                     fmt::format("{} bytes for {} pages of encoding {}", +entry.length, +entry.pages,
                                 to_string(encoding)));
  return {};
}

}  // namespace

std::string_view to_string(PageEncoding encoding) {
  switch (encoding) {
    case PageEncoding::kInvalid:
      return "invalid";
    case PageEncoding::kZero:
      return "zero";
    case PageEncoding::kRaw:
      return "raw";
    case PageEncoding::kXbzrle:
      return "xbzrle";
  }
  return "invalid";
}

Result<PageBatchReader> PageBatchReader::open(const Record& record) {
  const bool object = record.type == RecordType::kObjectPages;
  if (!object && record.type != RecordType::kPages)
    return fail(ErrorKind::kCorrupt, "expecting a batch of pages", record.name());
  if (record.payload.size() < sizeof(PageBatchHeader))
    return fail(ErrorKind::kCorrupt, fmt::format("reading a batch of {} bytes", record.payload.size()),
                record.name());
  const auto header = load<PageBatchHeader>(record.payload.data());
  const size_t behind = record.payload.size() - sizeof header;
  if (header.entries == 0 || header.entries > kBatchEntries || header.reserved != 0 ||
      header.entries * sizeof(PageTableEntry) > behind)
    return fail(ErrorKind::kCorrupt,
                fmt::format("reading a table of {} entries in {} bytes", +header.entries, behind),
                record.name());
  if (!object && header.owner > std::numeric_limits<uint32_t>::max())
    return fail(ErrorKind::kCorrupt, fmt::format("reading process index {}", +header.owner), record.name());

  PageBatchReader reader;
  reader.owner_ = header.owner;
  reader.entries_ = header.entries;
  reader.table_ = record.payload.data() + sizeof header;
  reader.payload_ = reader.table_ + reader.entries_ * sizeof(PageTableEntry);
  uint64_t total = 0;
  for (size_t i = 0; i < reader.entries_; ++i) {
    const auto entry = load<PageTableEntry>(reader.table_ + i * sizeof(PageTableEntry));
    TRY(check_entry(record, i, entry, object ? kMaxObjectEnd : kUserSpaceEnd));
    total += entry.length;
  }
  const size_t have = behind - reader.entries_ * sizeof(PageTableEntry);
  if (total != have)
    return fail(ErrorKind::kCorrupt,
                fmt::format("adding up {} payload bytes, the record holds {}", total, have), record.name());
  return reader;
}

std::optional<PageEntry> PageBatchReader::next() {
  if (index_ == entries_) return std::nullopt;
  const auto raw = load<PageTableEntry>(table_ + index_++ * sizeof(PageTableEntry));
  // SAFETY: open() has proven that the lengths add up to the record.
  const PageEntry entry{raw.at, raw.pages, static_cast<PageEncoding>(raw.encoding), {payload_, raw.length}};
  payload_ += raw.length;
  return entry;
}

}  // namespace godwit::wire
