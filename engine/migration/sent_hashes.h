// What was last sent of pages of hugetlbfs, by hash. Place in the pipeline: inside a lane, beside its
// encoder. Thread: the lane's.
//
// The kernel marks such memory 2 MiB at a time, so one store makes 512 pages candidates. Most of them are as
// they were: what hashes as it did when it was last sent is not sent again, however small the delta cache.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/model/vma.h"

namespace godwit::migration {

class SentHashes {
 public:
  using Page = std::span<const std::byte, kPageSize>;

  /// The areas of hugetlbfs, ascending; of other memory nothing is kept.
  void watch(const std::vector<AddressRange>& areas);
  [[nodiscard]] bool watches(RemoteAddr at) const;

  /// `page` is about to be sent, if need be. True: it is what was sent of `at` before, and is there.
  bool is_known(RemoteAddr at, Page page);
  /// The destination's contents of `range` changed otherwise.
  void forget(AddressRange range);
  /// Of the huge page at `start`, a page that was not all zeros when it was sent.
  [[nodiscard]] std::optional<RemoteAddr> find_filled(RemoteAddr start) const;

 private:
  static constexpr uint64_t kUnknown = 0;
  static constexpr uint64_t kZeros = 1;
  using Hashes = std::array<uint64_t, kHugePageSize / kPageSize>;

  std::vector<AddressRange> areas_;
  std::map<uint64_t, std::unique_ptr<Hashes>> huge_pages_;  ///< by start
};

}  // namespace godwit::migration
