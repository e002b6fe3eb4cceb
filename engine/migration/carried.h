// Which areas, and which of their pages, travel from the source's memory. For the sources of the memory
// sender.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/model/page_run.h"
#include "engine/model/vma.h"

namespace godwit::migration {

/// A shared file that this process may not write holds what the destination's file holds.
inline bool is_carried(const Vma& vma) {
  if (vma.kind == VmaKind::kFileShared) return vma.has_flag("mw");
  return vma.kind == VmaKind::kAnonymous || vma.kind == VmaKind::kFilePrivate;
}

/// Whether these pages are the process' own: a clean page of a private file mapping is its file's, and what
/// holds nothing is nobody's.
inline bool is_own(const Vma& vma, const PageRun& run) {
  return run.present && !(run.file && vma.kind == VmaKind::kFilePrivate);
}

/// Whether a process may be let run without a page of it (post-copy). Locked memory is faulted in at the
/// rebuild; what a child finds wiped (MADV_WIPEONFORK) would come to it all the same; what is not private
/// anonymous memory arrives before.
inline bool can_be_missing(const Vma& vma) {
  return vma.kind == VmaKind::kAnonymous && !vma.shared && vma.huge_page == 0 && !vma.has_flag("lo") &&
         !vma.has_flag("wf");
}

inline bool touch(const std::vector<AddressRange>& list, AddressRange range) {
  return std::any_of(list.begin(), list.end(), [&](AddressRange r) { return r.overlaps(range); });
}

/// Whether `list`, ascending, has exactly this range.
inline bool is_in(const std::vector<AddressRange>& list, AddressRange range) {
  const auto at = std::lower_bound(list.begin(), list.end(), range,
                                   [](AddressRange a, AddressRange b) { return a.start < b.start; });
  return at != list.end() && *at == range;
}

/// The parts of `list` (ascending, disjoint) inside `range`.
inline std::vector<AddressRange> parts_in(const std::vector<AddressRange>& list, AddressRange range) {
  std::vector<AddressRange> parts;
  auto at = std::lower_bound(list.begin(), list.end(), range.start,
                             [](const AddressRange& r, RemoteAddr start) { return r.end <= start; });
  for (; at != list.end() && at->start < range.end; ++at) parts.push_back(intersect(*at, range));
  return parts;
}

}  // namespace godwit::migration
