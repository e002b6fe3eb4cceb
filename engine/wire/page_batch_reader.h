// Takes a `pages` or `object_pages` record apart. The whole table is checked before the first entry is handed
// out, so nothing of a malformed batch is ever installed. Stage: RecordReader -> PageBatchReader -> decoder.
// One thread.
#pragma once

#include <optional>

#include "engine/base/result.h"
#include "engine/wire/page_batch.h"
#include "engine/wire/record.h"

namespace godwit::wire {

class PageBatchReader {
 public:
  /// Checks every entry: aligned, in user space (or within a file), known encoding, lengths that add up to
  /// the record exactly. The record's payload must outlive the reader. Errors: Corrupt, Unsupported
  /// (encoding).
  static Result<PageBatchReader> open(const Record& record);

  /// The next run, in the order of the table; nothing after the last.
  std::optional<PageEntry> next();

  [[nodiscard]] uint32_t process() const { return static_cast<uint32_t>(owner_); }  ///< of a `pages` record
  [[nodiscard]] uint64_t object() const { return owner_; }  ///< of an `object_pages` record
  [[nodiscard]] size_t entries() const { return entries_; }

 private:
  uint64_t owner_ = 0;
  size_t entries_ = 0;
  size_t index_ = 0;
  const std::byte* table_ = nullptr;
  const std::byte* payload_ = nullptr;
};

}  // namespace godwit::wire
