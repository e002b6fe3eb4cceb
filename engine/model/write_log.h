// What the looks for dirty pages ask of whoever can tell where pages were written, so that they need not look
// everywhere. Implementation: ebpf/write_log. Thread: one at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/address_range.h"

namespace godwit {

struct WrittenSince {
  /// Not empty: something happened that the log cannot vouch for, and only a look at all memory can tell.
  std::string blind;
  /// Else whatever was written lies in here: ascending, disjoint. Most pages in it were not written, or
  /// shortly before the mark.
  std::vector<AddressRange> around;
  /// The same to the page, good for areas where no fault makes huge pages; nothing if there are too many.
  std::optional<std::vector<AddressRange>> pages;
};

class WriteLog {
 public:
  virtual ~WriteLog() = default;

  /// Pages that were written, or are about to be, since this was asked last (at first, since the log began):
  /// ascending, disjoint. A guide and no more: some may be missing, of which nothing is told. nullopt for
  /// more than `most` writes.
  virtual std::optional<std::vector<AddressRange>> heard(size_t most) = 0;

  /// How often the layout of the process may have changed, the advice given for its areas included, since
  /// somebody asked first. Errors: Unsupported when this kernel does not let itself be watched.
  virtual Result<uint64_t> changes() = 0;

  /// From here on writes are told by since_mark(). Call it before the collect() that cleans what is asked for
  /// then. Errors: as changes().
  virtual Status mark() = 0;

  /// What every thread of the frozen process wrote since the mark. Call it before anything is injected: what
  /// this engine itself writes is in no log. Errors: System.
  virtual Result<WrittenSince> since_mark() = 0;
};

}  // namespace godwit
