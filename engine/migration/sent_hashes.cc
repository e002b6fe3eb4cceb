#include "engine/migration/sent_hashes.h"

#include <algorithm>
#include <utility>

#include "engine/base/xxh3.h"
#include "engine/codec/zero_page.h"

namespace godwit::migration {
namespace {

uint64_t huge_page_of(RemoteAddr at) {
  return at.value() & ~(kHugePageSize - 1);
}

size_t index_of(RemoteAddr at) {
  return (at.value() & (kHugePageSize - 1)) >> kPageShift;
}

}  // namespace

void SentHashes::watch(const std::vector<AddressRange>& areas) {
  areas_ = areas;
  std::erase_if(huge_pages_, [&](const auto& known) { return !watches(RemoteAddr(known.first)); });
}

bool SentHashes::watches(RemoteAddr at) const {
  const auto area = std::lower_bound(areas_.begin(), areas_.end(), at,
                                     [](const AddressRange& r, RemoteAddr a) { return r.end <= a; });
  return area != areas_.end() && area->contains(at);
}

bool SentHashes::is_known(RemoteAddr at, Page page) {
  if (areas_.empty() || !watches(at)) return false;
  auto& hashes = huge_pages_[huge_page_of(at)];
  if (!hashes) hashes = std::make_unique<Hashes>();
  const uint64_t now =
      codec::is_zero_page(page) ? kZeros : std::max(kZeros + 1, XXH3_64bits(page.data(), page.size()));
  return std::exchange((*hashes)[index_of(at)], now) == now;
}

void SentHashes::forget(AddressRange range) {
  auto known = huge_pages_.lower_bound(huge_page_of(range.start));
  for (; known != huge_pages_.end() && known->first < range.end.value(); ++known) {
    const AddressRange part = intersect(range, range_of(known->first, known->first + kHugePageSize));
    const auto first = known->second->begin() + static_cast<std::ptrdiff_t>(index_of(part.start));
    std::fill_n(first, part.pages(), kUnknown);
  }
}

std::optional<RemoteAddr> SentHashes::find_filled(RemoteAddr start) const {
  const auto known = huge_pages_.find(start.value());
  if (known == huge_pages_.end()) return std::nullopt;
  const auto filled =
      std::find_if(known->second->begin(), known->second->end(), [](uint64_t hash) { return hash > kZeros; });
  if (filled == known->second->end()) return std::nullopt;
  return start + static_cast<uint64_t>(filled - known->second->begin()) * kPageSize;
}

}  // namespace godwit::migration
