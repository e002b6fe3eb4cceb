#include "engine/model/vma.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>

namespace godwit {

std::string to_text(const Vma& vma) {
  const auto letter = [&](int bit, char set) { return (vma.prot & bit) != 0 ? set : '-'; };
  return fmt::format("{} {}{}{}{} {}", vma.range, letter(PROT_READ, 'r'), letter(PROT_WRITE, 'w'),
                     letter(PROT_EXEC, 'x'), vma.shared ? 's' : 'p',
                     vma.path.empty() ? "anonymous" : vma.path);
}

const Vma* find_vma(const Layout& layout, RemoteAddr a) {
  const auto after = std::upper_bound(layout.begin(), layout.end(), a,
                                      [](RemoteAddr at, const Vma& vma) { return at < vma.range.end; });
  return after != layout.end() && after->range.contains(a) ? &*after : nullptr;
}

}  // namespace godwit
