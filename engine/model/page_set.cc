#include "engine/model/page_set.h"

#include <algorithm>
#include <bit>

namespace godwit {
namespace {

/// Bits [from, to) of a word of 64.
uint64_t mask(uint64_t from, uint64_t to) {
  const uint64_t upto = to >= 64 ? ~uint64_t{0} : (uint64_t{1} << to) - 1;
  return upto & ~((uint64_t{1} << from) - 1);
}

}  // namespace

/// Calls change(block number, word index, mask) for every word that the range touches.
template <typename Change>
void PageSet::for_words(AddressRange range, const Change& change) {
  uint64_t page = range.start.value() >> kPageShift;
  const uint64_t end = page_ceil(range.end.value()) >> kPageShift;
  while (page < end) {
    const uint64_t word_end = (page | 63) + 1;
    change(page >> (kBlockShift - kPageShift), (page >> 6) & 7,
           mask(page & 63, std::min(end, word_end) - (page & ~uint64_t{63})));
    page = word_end;
  }
}

void PageSet::insert(AddressRange range) {
  for_words(range, [this](uint64_t block, uint64_t word, uint64_t bits) { blocks_[block][word] |= bits; });
}

void PageSet::erase(AddressRange range) {
  // Blocks wholly inside go at once: a range may be terabytes of nothing.
  const uint64_t first = (range.start.value() + (uint64_t{1} << kBlockShift) - 1) >> kBlockShift;
  const uint64_t last = range.end.value() >> kBlockShift;
  if (first < last) blocks_.erase(blocks_.lower_bound(first), blocks_.lower_bound(last));
  const auto clear_part = [this](AddressRange part) {
    for_words(part, [this](uint64_t block, uint64_t word, uint64_t bits) {
      const auto at = blocks_.find(block);
      if (at == blocks_.end()) return;
      at->second[word] &= ~bits;
      if (std::all_of(at->second.begin(), at->second.end(), [](uint64_t w) { return w == 0; }))
        blocks_.erase(at);
    });
  };
  if (first >= last) return clear_part(range);
  clear_part({range.start, RemoteAddr(first << kBlockShift)});
  clear_part({RemoteAddr(last << kBlockShift), range.end});
}

bool PageSet::contains(RemoteAddr address) const {
  const auto at = blocks_.find(address.value() >> kBlockShift);
  if (at == blocks_.end()) return false;
  const uint64_t page = address.value() >> kPageShift;
  return (at->second[(page >> 6) & 7] >> (page & 63) & 1) != 0;
}

uint64_t PageSet::size() const {
  uint64_t pages = 0;
  for (const auto& [block, words] : blocks_)
    for (const uint64_t word : words) pages += static_cast<uint64_t>(std::popcount(word));
  return pages;
}

void PageSet::append_runs(uint64_t block, const Block& words, std::vector<AddressRange>& found) {
  for (uint64_t word = 0; word < words.size(); ++word) {
    uint64_t bits = words[word];
    while (bits != 0) {
      const auto from = static_cast<uint64_t>(std::countr_zero(bits));
      const auto length = static_cast<uint64_t>(std::countr_one(bits >> from));
      const uint64_t start = (block << kBlockShift) + ((word * 64 + from) << kPageShift);
      const AddressRange run = range_of(start, start + (length << kPageShift));
      if (!found.empty() && found.back().end == run.start) {
        found.back().end = run.end;
      } else {
        found.push_back(run);
      }
      bits &= ~mask(from, from + length);
    }
  }
}

std::vector<AddressRange> PageSet::runs() const {
  std::vector<AddressRange> found;
  for (const auto& [block, words] : blocks_) append_runs(block, words, found);
  return found;
}

std::vector<AddressRange> PageSet::runs_in(AddressRange range) const {
  std::vector<AddressRange> found;
  const auto end = blocks_.lower_bound((range.end.value() + (uint64_t{1} << kBlockShift) - 1) >> kBlockShift);
  for (auto at = blocks_.lower_bound(range.start.value() >> kBlockShift); at != end; ++at)
    append_runs(at->first, at->second, found);
  for (AddressRange& run : found) run = intersect(run, range);
  std::erase_if(found, [](AddressRange run) { return run.empty(); });
  return found;
}

std::vector<AddressRange> PageSet::runs_in(const std::vector<AddressRange>& ranges) const {
  std::vector<AddressRange> found;
  if (ranges.empty()) return found;
  auto range = ranges.begin();
  for (const AddressRange& run : runs_in(AddressRange{ranges.front().start, ranges.back().end})) {
    while (range != ranges.end() && range->end <= run.start) ++range;
    for (auto at = range; at != ranges.end() && at->start < run.end; ++at)
      found.push_back(intersect(*at, run));
  }
  return found;
}

}  // namespace godwit
