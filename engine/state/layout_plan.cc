#include "engine/state/layout_plan.h"

#include <algorithm>

#include "engine/base/files.h"

namespace godwit::state {
namespace {

using Kind = LayoutStep::Kind;

/// Of hugetlbfs, what is anonymous has a file of its own, which tells it from another.
bool has_offset(const Vma& vma) {
  return vma.huge_page != 0 || vma.kind == VmaKind::kFilePrivate || vma.kind == VmaKind::kFileShared ||
         vma.kind == VmaKind::kShmem;
}

/// Both show the same memory where they overlap (protection and advice aside).
bool same_backing(const Vma& a, const Vma& b) {
  if (a.kind != b.kind || a.shared != b.shared || a.huge_page != b.huge_page) return false;
  if (a.has_flag("gd") != b.has_flag("gd")) return false;
  if (a.kind == VmaKind::kVdso) return a.range == b.range && a.path == b.path;
  if (!has_offset(a)) return true;
  const uint64_t base_a = a.offset - a.range.start.value();
  const uint64_t base_b = b.offset - b.range.start.value();
  return a.device == b.device && a.inode == b.inode && base_a == base_b;
}

Vma part_of(const Vma& vma, AddressRange part) {
  Vma cut = vma;
  cut.range = part;
  if (has_offset(vma)) cut.offset += part.start - vma.range.start;
  return cut;
}

/// `whole` without `taken` (sorted, disjoint, inside it).
std::vector<AddressRange> without(AddressRange whole, const std::vector<AddressRange>& taken) {
  std::vector<AddressRange> left;
  RemoteAddr at = whole.start;
  for (const AddressRange& range : taken) {
    if (at < range.start) left.push_back({at, range.start});
    at = std::max(at, range.end);
  }
  if (at < whole.end) left.push_back({at, whole.end});
  return left;
}

struct Kept {
  AddressRange range;
  const Vma* before;
  const Vma* after;
};

/// Where both layouts show the same memory, ascending.
std::vector<Kept> find_kept(const Layout& current, const Layout& next) {
  std::vector<Kept> kept;
  auto before = current.begin();
  for (const Vma& after : next) {
    while (before != current.end() && before->range.end <= after.range.start) ++before;
    for (auto at = before; at != current.end() && at->range.start < after.range.end; ++at) {
      if (same_backing(*at, after)) kept.push_back({intersect(at->range, after.range), &*at, &after});
    }
  }
  return kept;
}

/// The parts of every area of `layout` that are in no kept range.
std::vector<Vma> not_kept(const Layout& layout, const std::vector<Kept>& kept) {
  std::vector<Vma> parts;
  auto at = kept.begin();
  for (const Vma& vma : layout) {
    std::vector<AddressRange> taken;
    while (at != kept.end() && at->range.end <= vma.range.start) ++at;
    for (auto k = at; k != kept.end() && k->range.start < vma.range.end; ++k) taken.push_back(k->range);
    for (const AddressRange& part : without(vma.range, taken)) parts.push_back(part_of(vma, part));
  }
  return parts;
}

}  // namespace

std::string settable_flags(std::string_view flags) {
  constexpr std::string_view kSettable[] = {"dc", "dd", "gd", "hg", "lf", "lo",
                                            "mg", "nh", "nr", "rr", "sr", "wf"};
  std::vector<std::string_view> found;
  for (const std::string_view flag : split(flags, ' ')) {
    if (std::find(std::begin(kSettable), std::end(kSettable), flag) != std::end(kSettable))
      found.push_back(flag);
  }
  std::sort(found.begin(), found.end());
  std::string text;
  for (const std::string_view flag : found) text += (text.empty() ? "" : " ") + std::string(flag);
  return text;
}

std::vector<LayoutStep> plan_layout(const Layout& current, const Layout& next) {
  const std::vector<Kept> kept = find_kept(current, next);
  std::vector<LayoutStep> steps;
  for (const Vma& gone : not_kept(current, kept)) steps.push_back({Kind::kUnmap, gone, {}});
  for (const Vma& fresh : not_kept(next, kept)) steps.push_back({Kind::kMap, fresh, {}});
  for (const Kept& k : kept) {
    const bool protection =
        k.before->prot != k.after->prot || k.before->protection_key != k.after->protection_key;
    if (protection) steps.push_back({Kind::kProtect, part_of(*k.after, k.range), {}});
  }
  for (const Kept& k : kept) {
    const std::string had = settable_flags(k.before->flags);
    if (had != settable_flags(k.after->flags))
      steps.push_back({Kind::kAdvise, part_of(*k.after, k.range), had});
  }
  return steps;
}

}  // namespace godwit::state
