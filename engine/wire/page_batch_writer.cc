#include "engine/wire/page_batch_writer.h"

#include <algorithm>
#include <cstring>

namespace godwit::wire {

namespace {

// The buffer: room for the record header, the batch header and the fullest table, then the payloads. finish()
// puts headers and table directly in front of the payloads, so the record is contiguous however long its
// table became. Payloads start on a page, which copies fastest.
constexpr size_t kTableRoom =
    sizeof(RecordHeader) + sizeof(PageBatchHeader) + kBatchEntries * sizeof(PageTableEntry);
constexpr size_t kPayloadStart = page_ceil(kTableRoom);

bool aligned(uint64_t at) {
  return at % kPageSize == 0;
}

}  // namespace

Result<PageBatchWriter> PageBatchWriter::create() {
  PageBatchWriter writer;
  writer.buffer_ = TRY(Mapping::anonymous(kPayloadStart + kBatchPayload));
  writer.table_.reserve(kBatchEntries);
  return writer;
}

void PageBatchWriter::begin(uint32_t process) {
  CHECK(empty());
  type_ = RecordType::kPages;
  owner_ = process;
}

void PageBatchWriter::begin_object(uint64_t object) {
  CHECK(empty());
  type_ = RecordType::kObjectPages;
  owner_ = object;
}

void PageBatchWriter::clear() {
  table_.clear();
  used_ = 0;
  raw_ = 0;
}

std::span<std::byte> PageBatchWriter::room() {
  return buffer_.span().subspan(kPayloadStart + used_);
}

size_t PageBatchWriter::record_bytes() const {
  return sizeof(RecordHeader) + sizeof(PageBatchHeader) + table_.size() * sizeof(PageTableEntry) + used_;
}

bool PageBatchWriter::append_zero(uint64_t at, size_t pages) {
  CHECK(aligned(at) && pages > 0 && pages <= kRunPages);
  return add(PageEncoding::kZero, at, pages, 0);
}

bool PageBatchWriter::append_raw(uint64_t at, std::span<const std::byte> bytes) {
  CHECK(aligned(bytes.size()));
  if (bytes.size() > kBatchPayload - used_) return false;
  std::byte* const to = room().data();
  if (!commit_raw(at, bytes.size() / kPageSize)) return false;
  std::memcpy(to, bytes.data(), bytes.size());
  return true;
}

bool PageBatchWriter::append_encoded(PageEncoding encoding, uint64_t at, size_t pages,
                                     std::span<const std::byte> payload) {
  if (payload.size() > kBatchPayload - used_) return false;
  std::byte* const to = room().data();
  if (!commit_encoded(encoding, at, pages, payload.size())) return false;
  std::memcpy(to, payload.data(), payload.size());
  return true;
}

bool PageBatchWriter::commit_raw(uint64_t at, size_t pages) {
  CHECK(aligned(at) && pages > 0 && pages * kPageSize <= kBatchPayload - used_);
  return add(PageEncoding::kRaw, at, pages, pages * kPageSize);
}

bool PageBatchWriter::commit_encoded(PageEncoding encoding, uint64_t at, size_t pages, size_t length) {
  CHECK(encoding == PageEncoding::kXbzrle && pages == 1 && aligned(at));
  CHECK(length > 0 && length < kPageSize && length <= kBatchPayload - used_);
  return add(encoding, at, pages, length);
}

bool PageBatchWriter::add(PageEncoding encoding, uint64_t at, size_t pages, size_t length) {
  CHECK(type_ != RecordType::kInvalid);
  if (!extend_last(encoding, at, pages, length)) {
    if (table_.size() == kBatchEntries) return false;
    table_.push_back({at, static_cast<uint32_t>(length), static_cast<uint16_t>(pages),
                      static_cast<uint8_t>(encoding), uint8_t{0}});
  }
  used_ += length;
  if (encoding == PageEncoding::kRaw) raw_ += length;
  return true;
}

bool PageBatchWriter::extend_last(PageEncoding encoding, uint64_t at, size_t pages, size_t length) {
  if (table_.empty() || encoding > PageEncoding::kRaw) return false;
  PageTableEntry& last = table_.back();
  const size_t together = last.pages + pages;
  const bool adjacent = last.at + last.pages * kPageSize == at;
  if (last.encoding != static_cast<uint8_t>(encoding) || !adjacent || together > kRunPages) return false;
  last.pages = static_cast<uint16_t>(together);
  last.length = static_cast<uint32_t>(last.length + length);
  return true;
}

std::span<std::byte> PageBatchWriter::finish() {
  const PageBatchHeader header{owner_, static_cast<uint32_t>(table_.size()), uint32_t{0}};
  const size_t table_bytes = table_.size() * sizeof(PageTableEntry);
  const std::span<std::byte> record =
      buffer_.span().subspan(kPayloadStart + used_ - record_bytes(), record_bytes());
  std::byte* const to = record.data() + sizeof(RecordHeader);
  std::memcpy(to, &header, sizeof header);
  std::memcpy(to + sizeof header, table_.data(), table_bytes);
  return record;
}

}  // namespace godwit::wire
