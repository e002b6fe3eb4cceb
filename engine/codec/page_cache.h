// What the destination holds, as far as the source remembers it: the bases of the deltas. Belongs to one
// encoder, which belongs to one channel; since channels are partitioned by address, caches share nothing.
// Single thread.
//
// Set-associative: a key may stand in any of 8 ways of the one set that its address names. The order of
// eviction follows from how a migration looks at memory: every round walks the dirty pages once, in order.
// Plain LRU would then, as soon as the dirty pages outgrow the budget by a little, always throw out the page
// that comes next and never hit. So a page that was used in this round or the one before is not evicted: what
// does not fit is not kept, and the hits are the budget's share of the dirty pages, not none. A page that a
// whole round did not touch is stale and goes first, the oldest before others.
//
// The budget is the upper bound of real memory, tags included. Nothing is touched before it is used: an empty
// cache costs address space alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "engine/base/mapping.h"
#include "engine/base/result.h"
#include "engine/base/units.h"
#include "engine/model/address_range.h"

namespace godwit::codec {

using PageView = std::span<const std::byte, kPageSize>;
using PageBytes = std::span<std::byte, kPageSize>;

/// Which page. `space` tells address spaces and objects (a memfd, SysV memory) apart, `address` is its first
/// byte there (for an object the offset) and a multiple of kPageSize.
struct PageKey {
  uint32_t space = 0;
  RemoteAddr address;
  bool operator==(const PageKey&) const = default;
};

/// Is a page that the cache does not hold yet worth a place?
enum class KeepBase : uint8_t {
  kInvalid = 0,
  kNo,      ///< leave the cache as it is
  kIfRoom,  ///< only where there is a free place; stale until it is looked up: who knows whether it ever is
  kYes,     ///< also in the place of a stale page
};

struct CacheStats {
  uint64_t hits = 0;        ///< lookups that found the page
  uint64_t misses = 0;      ///< lookups that did not
  uint64_t insertions = 0;  ///< pages that got a place
  uint64_t evictions = 0;   ///< of those, in the place of a stale page
  uint64_t refusals = 0;    ///< pages that found no place, the set being full of pages in use
};

class PageCache {
 public:
  static constexpr size_t kWays = 8;
  static constexpr size_t kBytesPerEntry = kPageSize + 16;  ///< the page and its tag
  static constexpr size_t kMinBudget = kWays * kBytesPerEntry;

  /// `budget` in bytes, at least kMinBudget. Errors: Usage, System (no address space).
  static Result<PageCache> create(size_t budget);

  /// The page under `key`, which now counts as used in this round. Writing to it changes the cache: that is
  /// how its owner keeps it equal to the destination. Valid until the next insert, discard or clear.
  std::optional<PageBytes> lookup(PageKey key);

  /// Puts `page` under `key`, which must not be held yet (a bug otherwise). False if there is no place.
  bool insert(PageKey key, PageView page, KeepBase keep);

  /// Replaces the bytes under `key`, without counting it as used. False if it is not held.
  bool update(PageKey key, PageView page);

  /// The page under `key` stays, but is the first to go: its deltas do not pay. False if it is not held.
  bool demote(PageKey key);

  /// Forgets one page. False if it was not held.
  bool evict(PageKey key);

  /// Forgets the pages in `range` of `space`; returns how many.
  /// ORDER: whenever the destination's contents of a range change by anything but a page from this encoder
  /// (unmap, map, MADV_DONTNEED, hole punch), before the next page of that range is encoded.
  size_t discard(uint32_t space, AddressRange range);

  /// Forgets everything and gives the memory back, as after a reconnect: what the peer holds is not known any
  /// more.
  void clear();

  /// Pages that were last used two rounds ago become stale.
  void begin_round() { ++round_; }

  [[nodiscard]] size_t capacity() const { return sets_ * kWays; }  ///< in pages
  [[nodiscard]] size_t size() const { return size_; }              ///< pages held
  [[nodiscard]] const CacheStats& stats() const { return stats_; }

 private:
  struct Tag {
    uint64_t page =
        0;  // page number + 1; 0 is a place without a page, so fresh zero memory is an empty cache
    uint32_t space = 0;
    uint32_t round = 0;  // last use
  };
  static_assert(sizeof(Tag) == kBytesPerEntry - kPageSize);
  static constexpr uint32_t kStaleAge = 2;  // in rounds
  static constexpr uint32_t kDemotedAge = uint32_t{1} << 30;

  PageCache(Mapping pages, Mapping tags, size_t sets)
      : pages_(std::move(pages)), tag_memory_(std::move(tags)), sets_(sets) {}

  [[nodiscard]] Tag* tags() const;
  [[nodiscard]] Tag* set_of(PageKey key) const;
  [[nodiscard]] Tag* find(PageKey key) const;
  [[nodiscard]] PageBytes page_of(const Tag* tag) const;
  [[nodiscard]] uint32_t age(const Tag& tag) const { return round_ - tag.round; }
  Tag* choose_place(PageKey key, KeepBase keep);
  void forget(Tag* tag);

  Mapping pages_;
  Mapping tag_memory_;
  size_t sets_ = 0;
  size_t size_ = 0;
  uint32_t round_ = 0;  // may wrap: only ages are compared
  CacheStats stats_;
};

}  // namespace godwit::codec
