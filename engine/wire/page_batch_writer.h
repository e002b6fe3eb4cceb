// Gathers pages into one record in a reusable buffer. Adjacent zero pages and adjacent raw pages merge into
// one entry; raw payloads lie back to back, so they can be read from the target straight into the buffer.
// Stage: reader/encoder -> PageBatchWriter -> RecordWriter::write_batch. One thread.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "engine/base/mapping.h"
#include "engine/wire/page_batch.h"
#include "engine/wire/record.h"

namespace godwit::wire {

class PageBatchWriter {
 public:
  /// Allocates the buffer (about 1.1 MiB, touched as it fills). Errors: System.
  static Result<PageBatchWriter> create();

  /// Start an empty batch. Whatever was in it must have been written: a filled batch here is a bug.
  void begin(uint32_t process);
  void begin_object(uint64_t object);

  // Each append returns false, and changes nothing, when the batch has no room left: write it, then append
  // again. `at` is an address (begin) or a byte offset (begin_object), a multiple of 4096.

  [[nodiscard]] bool append_zero(uint64_t at, size_t pages);  ///< pages at most kRunPages
  /// `bytes` is one or more whole pages.
  [[nodiscard]] bool append_raw(uint64_t at, std::span<const std::byte> bytes);
  /// One page (kXbzrle is the only encoding so far); `payload` is shorter than it and not empty.
  [[nodiscard]] bool append_encoded(PageEncoding encoding, uint64_t at, size_t pages,
                                    std::span<const std::byte> payload);

  /// Free payload room: write up to room().size() bytes into it, then say with commit_* what it became.
  /// Valid until the next append, commit or begin.
  [[nodiscard]] std::span<std::byte> room();
  /// The first pages * 4096 bytes of room() are raw pages at `at`.
  [[nodiscard]] bool commit_raw(uint64_t at, size_t pages);
  /// The first `length` bytes of room() are the encoding of `pages` pages at `at`.
  [[nodiscard]] bool commit_encoded(PageEncoding encoding, uint64_t at, size_t pages, size_t length);

  [[nodiscard]] bool empty() const { return table_.empty(); }
  [[nodiscard]] RecordType type() const { return type_; }
  [[nodiscard]] size_t entries() const { return table_.size(); }
  [[nodiscard]] size_t payload_bytes() const { return used_; }
  [[nodiscard]] size_t raw_bytes() const { return raw_; }  ///< of them, those of raw pages
  /// What write_batch() will put on the stream for it, record header included.
  [[nodiscard]] size_t record_bytes() const;

  /// The finished record: room for the record header, then the payload. Valid until the next append or begin.
  std::span<std::byte> finish();
  /// Empties the batch; the owner stays.
  void clear();

 private:
  bool add(PageEncoding encoding, uint64_t at, size_t pages, size_t length);
  bool extend_last(PageEncoding encoding, uint64_t at, size_t pages, size_t length);

  Mapping buffer_;
  RecordType type_ = RecordType::kInvalid;
  uint64_t owner_ = 0;
  std::vector<PageTableEntry> table_;
  size_t used_ = 0;  ///< payload bytes
  size_t raw_ = 0;   ///< of them, those of raw pages
};

}  // namespace godwit::wire
