// A set of pages of an address space: one bit a page in blocks of 2 MiB. Remembers what the destination
// holds.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "engine/model/address_range.h"

namespace godwit {

class PageSet {
 public:
  void insert(AddressRange range);
  void erase(AddressRange range);
  [[nodiscard]] bool contains(RemoteAddr page) const;
  [[nodiscard]] uint64_t size() const;  ///< pages
  [[nodiscard]] bool empty() const { return blocks_.empty(); }
  /// Maximal runs, ascending.
  [[nodiscard]] std::vector<AddressRange> runs() const;
  /// The parts of the set inside `range`, maximal and ascending.
  [[nodiscard]] std::vector<AddressRange> runs_in(AddressRange range) const;
  /// The same for many ranges (ascending, disjoint), in one pass.
  [[nodiscard]] std::vector<AddressRange> runs_in(const std::vector<AddressRange>& ranges) const;
  void clear() { blocks_.clear(); }

 private:
  static constexpr uint64_t kBlockShift = 21;
  using Block = std::array<uint64_t, 8>;
  static void append_runs(uint64_t block, const Block& words, std::vector<AddressRange>& found);
  template <typename Change>
  void for_words(AddressRange range, const Change& change);
  std::map<uint64_t, Block> blocks_;  ///< by address >> 21; no empty block is kept
};

}  // namespace godwit
