// Consecutive pages that share their state, as the tracker reports them.
#pragma once

#include <vector>

#include "engine/model/address_range.h"

namespace godwit {

struct PageRun {
  AddressRange range;
  bool written = false;  ///< differs (or may differ) from what was last collected
  bool present = false;  ///< in memory or in swap; otherwise nothing was ever written or it was discarded
  bool zero = false;     ///< the shared zero page
  bool file = false;     ///< still the file's own page (clean page of a private file mapping)
  bool guard = false;    ///< MADV_GUARD_INSTALL
  bool operator==(const PageRun&) const = default;
};

using PageRuns = std::vector<PageRun>;

}  // namespace godwit
