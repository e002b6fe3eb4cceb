// Looks at the layout of the source's process, and at the flags of its areas, no more often than they may
// have changed. Place in the pipeline: before each collect, and in the freeze. Thread: the sender's.
#pragma once

#include <optional>

#include "engine/model/vma.h"
#include "engine/model/write_log.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

class LayoutWatch {
 public:
  /// Borrows it. `log`, here and below, counts what may have changed the layout; nullptr where nobody does.
  explicit LayoutWatch(const tracee::Process& process) : process_(process) {}

  /// The slow look, of which the flags of areas are the fruit. KERNEL: they come from smaps, which walks the
  /// page tables (20 ms per GiB); maps costs microseconds. Errors: TargetGone.
  Result<Layout> in_detail(WriteLog* log);
  /// Nothing can have changed the flags of areas since that look.
  [[nodiscard]] bool knows_details(WriteLog* log) const;

  /// The layout now. Flags of areas that `known` has are taken from there, and only an area that is new makes
  /// us walk. And 36 us per 100 areas are spared while nothing changed: from the first slow look on, the log
  /// counts. Errors: TargetGone.
  Result<Layout> look(const Layout& known, WriteLog* log);
  /// The same of the frozen process, and walks where locks of memory have changed since the slow look. What
  /// else became of a flag since then, without the area becoming another, is not seen.
  Result<Layout> look_frozen(const Layout& known, WriteLog* log);

 private:
  const tracee::Process& process_;
  std::optional<uint64_t> details_as_of_;  ///< of the log's changes, at the slow look
  uint64_t locked_ = 0;                    ///< bytes of memory, then
  std::optional<uint64_t> seen_as_of_;     ///< of the log's changes, when look() looked last
  Layout seen_;                            ///< what it saw
};

}  // namespace godwit::migration
