// From the layout that the shell has to the one that the source has now: the least work, as pure data.
#pragma once

#include <vector>

#include "engine/model/vma.h"

namespace godwit::state {

struct LayoutStep {
  enum class Kind : uint8_t { kInvalid = 0, kUnmap, kMap, kProtect, kAdvise };
  Kind kind = Kind::kInvalid;
  Vma area;  ///< kUnmap: only the range counts. kMap: offset fits the range. kAdvise: `flags` are wanted ...
  std::string had;  ///< ... and these are there

  bool operator==(const LayoutStep&) const = default;
};

/// Steps in the order in which they must be made: unmap, map, protect, advise. What stays keeps its pages: an
/// area that grew is extended, one that shrank is trimmed, one with a new protection is only protected.
std::vector<LayoutStep> plan_layout(const Layout& current, const Layout& next);

/// Of VmFlags, those that a process can set by madvise, mlock or mmap flags, sorted as in `flags`; tracking
/// marks (uw, um) and what follows from other fields is left out.
std::string settable_flags(std::string_view flags);

}  // namespace godwit::state
