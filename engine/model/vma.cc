#include "engine/model/vma.h"

#include <algorithm>

namespace godwit {

const Vma* find_vma(const Layout& layout, RemoteAddr a) {
  const auto after = std::upper_bound(layout.begin(), layout.end(), a,
                                      [](RemoteAddr at, const Vma& vma) { return at < vma.range.end; });
  return after != layout.end() && after->range.contains(a) ? &*after : nullptr;
}

}  // namespace godwit
