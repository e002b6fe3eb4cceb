// Which areas' pages travel from the source's memory. For the sources of the memory sender.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/model/vma.h"

namespace godwit::migration {

/// A shared file that this process may not write holds what the destination's file holds.
inline bool is_carried(const Vma& vma) {
  if (vma.kind == VmaKind::kFileShared) return vma.has_flag("mw");
  return vma.kind == VmaKind::kAnonymous || vma.kind == VmaKind::kFilePrivate;
}

inline bool touch(const std::vector<AddressRange>& list, AddressRange range) {
  return std::any_of(list.begin(), list.end(), [&](AddressRange r) { return r.overlaps(range); });
}

}  // namespace godwit::migration
