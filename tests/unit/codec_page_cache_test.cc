#include "engine/codec/page_cache.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>

#include "tests/unit/codec_test_pages.h"

namespace godwit::codec {
namespace {

PageCache make_cache(size_t pages) {
  return PageCache::create(pages * PageCache::kBytesPerEntry).take();
}
PageKey key_of(size_t page, uint32_t space = 0) {
  return {space, RemoteAddr(0x7f0000000000 + page * kPageSize)};
}
bool holds(PageCache& cache, PageKey key, const TestPage& page) {
  const auto found = cache.lookup(key);
  return found && std::equal(found->begin(), found->end(), page.begin());
}

TEST(PageCache, TakesItsSizeFromTheBudget) {
  EXPECT_EQ(PageCache::create(0).error().kind, ErrorKind::kUsage);
  EXPECT_EQ(PageCache::create(PageCache::kMinBudget - 1).error().kind, ErrorKind::kUsage);
  EXPECT_EQ(PageCache::create(PageCache::kMinBudget).value().capacity(), PageCache::kWays);
  const size_t pages = PageCache::create(64_MiB).value().capacity();
  EXPECT_LE(pages * PageCache::kBytesPerEntry, 64_MiB);
  EXPECT_GT((pages + 2 * PageCache::kWays) * PageCache::kBytesPerEntry, 64_MiB);
}

TEST(PageCache, InsertsLooksUpUpdatesEvicts) {
  PageCache cache = make_cache(64);
  EXPECT_FALSE(cache.lookup(key_of(1)));
  EXPECT_TRUE(cache.insert(key_of(1), filled_page(1), KeepBase::kYes));
  EXPECT_TRUE(holds(cache, key_of(1), filled_page(1)));
  EXPECT_FALSE(cache.lookup(key_of(1, 7))) << "another space";
  EXPECT_TRUE(cache.update(key_of(1), filled_page(2)));
  EXPECT_TRUE(holds(cache, key_of(1), filled_page(2)));
  EXPECT_FALSE(cache.update(key_of(2), filled_page(2)));
  EXPECT_EQ(cache.size(), 1u);
  EXPECT_TRUE(cache.evict(key_of(1)));
  EXPECT_FALSE(cache.evict(key_of(1)));
  EXPECT_FALSE(cache.lookup(key_of(1)));
  EXPECT_EQ(cache.size(), 0u);
  EXPECT_EQ(cache.stats().hits, 2u);
  EXPECT_EQ(cache.stats().misses, 3u);
}

TEST(PageCache, TellsSpacesApartWithinOneSet) {
  PageCache cache = make_cache(PageCache::kWays);  // one set
  EXPECT_TRUE(cache.insert(key_of(1, 0), filled_page(1), KeepBase::kYes));
  EXPECT_FALSE(cache.lookup(key_of(1, 1)));
  EXPECT_TRUE(cache.insert(key_of(1, 1), filled_page(2), KeepBase::kYes));
  EXPECT_TRUE(holds(cache, key_of(1, 0), filled_page(1)));
  EXPECT_TRUE(holds(cache, key_of(1, 1), filled_page(2)));
}

TEST(PageCache, HoldsAddressZero) {
  PageCache cache = make_cache(8);
  const PageKey first{0, RemoteAddr(0)};
  EXPECT_FALSE(cache.lookup(first));
  EXPECT_TRUE(cache.insert(first, filled_page(9), KeepBase::kYes));
  EXPECT_TRUE(holds(cache, first, filled_page(9)));
}

// Contiguous memory as large as the cache fits without a loss, and so do pages at any stride of a power of
// two.
TEST(PageCache, ARegularWorkingSetFillsIt) {
  for (size_t stride = 1; stride <= 4096; stride *= 2) {
    PageCache cache = make_cache(2048);
    size_t kept = 0;
    const size_t pages = std::min(cache.capacity(), (size_t{1} << 17) / stride);  // within half a GiB
    for (size_t i = 0; i < pages; ++i)
      kept += cache.insert(key_of(i * stride), filled_page(0), KeepBase::kYes);
    EXPECT_EQ(kept, pages) << "stride " << stride;
  }
}

TEST(PageCache, KeepsWhatIsInUseAndReplacesTheStalest) {
  PageCache cache = make_cache(PageCache::kWays);  // one set
  for (size_t i = 0; i < PageCache::kWays; ++i) {
    EXPECT_TRUE(cache.insert(key_of(i), filled_page(0), KeepBase::kYes));
  }
  const PageKey late = key_of(100), later = key_of(101);
  EXPECT_FALSE(cache.insert(late, filled_page(1), KeepBase::kYes)) << "all used in this round";
  cache.begin_round();
  EXPECT_FALSE(cache.insert(late, filled_page(1), KeepBase::kYes)) << "all used in the round before";
  for (size_t i = 1; i < PageCache::kWays; ++i) EXPECT_TRUE(cache.lookup(key_of(i)));
  cache.begin_round();
  EXPECT_FALSE(cache.insert(late, filled_page(1), KeepBase::kNo));
  EXPECT_FALSE(cache.insert(late, filled_page(1), KeepBase::kIfRoom)) << "stale, but not free";
  EXPECT_TRUE(cache.insert(late, filled_page(1), KeepBase::kYes));
  EXPECT_FALSE(cache.lookup(key_of(0))) << "the only stale one";
  EXPECT_FALSE(cache.insert(later, filled_page(1), KeepBase::kYes));
  EXPECT_EQ(cache.stats().evictions, 1u);
  EXPECT_EQ(cache.stats().refusals, 4u);
  EXPECT_EQ(cache.size(), PageCache::kWays);
}

// A bulk round over a slow link fills the cache; the first pages that are written then need places at once.
TEST(PageCache, WhatWasKeptForRoomAloneGivesWayUntilItIsUsed) {
  PageCache cache = make_cache(PageCache::kWays);  // one set
  for (size_t i = 0; i < PageCache::kWays; ++i)
    EXPECT_TRUE(cache.insert(key_of(i), filled_page(0), KeepBase::kIfRoom));
  EXPECT_FALSE(cache.insert(key_of(100), filled_page(1), KeepBase::kIfRoom));
  cache.begin_round();
  EXPECT_TRUE(cache.lookup(key_of(0)));
  for (size_t i = 1; i < PageCache::kWays; ++i)
    EXPECT_TRUE(cache.insert(key_of(100 + i), filled_page(1), KeepBase::kYes)) << i;
  EXPECT_FALSE(cache.insert(key_of(200), filled_page(1), KeepBase::kYes));
  EXPECT_TRUE(cache.lookup(key_of(0)));
}

TEST(PageCache, ADemotedPageStaysButGoesFirst) {
  PageCache cache = make_cache(PageCache::kWays);
  for (size_t i = 0; i < PageCache::kWays; ++i) cache.insert(key_of(i), filled_page(3), KeepBase::kYes);
  EXPECT_TRUE(cache.demote(key_of(5)));
  EXPECT_FALSE(cache.demote(key_of(50)));
  EXPECT_TRUE(cache.insert(key_of(50), filled_page(4), KeepBase::kYes));
  for (size_t i = 0; i < PageCache::kWays; ++i)
    EXPECT_EQ(holds(cache, key_of(i), filled_page(3)), i != 5) << i;
}

// What plain LRU gets wrong: rounds that walk, in order, through twice as many pages as fit.
TEST(PageCache, HitsItsShareOfAWorkingSetThatDoesNotFit) {
  constexpr size_t kFits = 1024;
  PageCache cache = make_cache(kFits);
  for (int round = 0; round < 6; ++round) {
    for (size_t i = 0; i < 2 * kFits; ++i) {
      if (!cache.lookup(key_of(i))) cache.insert(key_of(i), filled_page(0), KeepBase::kYes);
    }
    cache.begin_round();
  }
  EXPECT_GT(cache.stats().hits, 5 * kFits * 9 / 10);
  EXPECT_EQ(cache.stats().evictions, 0u);
}

TEST(PageCache, FollowsAWorkingSetThatMoves) {
  constexpr size_t kFits = 1024;
  PageCache cache = make_cache(kFits);
  for (size_t i = 0; i < 2 * kFits; ++i) cache.insert(key_of(i), filled_page(0), KeepBase::kIfRoom);
  for (int round = 0; round < 5; ++round) {
    cache.begin_round();
    for (size_t i = 10 * kFits; i < 10 * kFits + kFits / 2; ++i) {
      if (!cache.lookup(key_of(i))) cache.insert(key_of(i), filled_page(0), KeepBase::kYes);
    }
  }
  const uint64_t before = cache.stats().hits;
  for (size_t i = 10 * kFits; i < 10 * kFits + kFits / 2; ++i) cache.lookup(key_of(i));
  EXPECT_GT(cache.stats().hits - before, kFits / 2 * 95 / 100);
}

TEST(PageCache, DiscardsPartOfOneSpace) {
  for (const size_t pages : {size_t{3}, size_t{3000}}) {  // by lookups, and by a scan
    PageCache cache = make_cache(4096);
    for (size_t i = 0; i < 3010; ++i) {
      cache.insert(key_of(i, 0), filled_page(1), KeepBase::kYes);
      if (i < 10) cache.insert(key_of(i, 1), filled_page(1), KeepBase::kYes);
    }
    const size_t before = cache.size();
    const uint64_t start =
        key_of(5).address.value() + 100;  // a page that is touched in part is gone in whole
    const size_t gone = cache.discard(0, range_of(start, start - 200 + pages * kPageSize));
    EXPECT_EQ(cache.size(), before - gone);
    EXPECT_LE(gone, pages);
    EXPECT_GT(gone, pages * 9 / 10);
    EXPECT_FALSE(cache.lookup(key_of(5)));
    EXPECT_FALSE(cache.lookup(key_of(5 + pages - 1)));
    EXPECT_TRUE(cache.lookup(key_of(4)));
    EXPECT_TRUE(cache.lookup(key_of(5, 1)));
    EXPECT_EQ(cache.discard(0, range_of(start, start)), 0u);
    EXPECT_EQ(cache.discard(1, range_of(0, UINT64_MAX)), 10u);
    EXPECT_EQ(cache.discard(1, range_of(UINT64_MAX - 1, UINT64_MAX)), 0u);
  }
}

TEST(PageCache, AClearedCacheIsANewOne) {
  PageCache cache = make_cache(64);
  for (size_t i = 0; i < 40; ++i) cache.insert(key_of(i), filled_page(1), KeepBase::kYes);
  cache.clear();
  EXPECT_EQ(cache.size(), 0u);
  for (size_t i = 0; i < 40; ++i) EXPECT_FALSE(cache.lookup(key_of(i)));
  EXPECT_TRUE(cache.insert(key_of(0), filled_page(2), KeepBase::kIfRoom));
  EXPECT_TRUE(holds(cache, key_of(0), filled_page(2)));
}

TEST(PageCache, AnUnusedPageCostsNothing) {
  PageCache cache = PageCache::create(64_MiB).take();
  cache.insert(key_of(1), filled_page(1), KeepBase::kYes);
  const auto page = cache.lookup(key_of(1));
  ASSERT_TRUE(page);
  // The pages around the one in use: one resident at most in any 16 places.
  auto* const start = page->data() - (reinterpret_cast<uintptr_t>(page->data()) % (16 * kPageSize));
  std::array<unsigned char, 16> resident{};
  ASSERT_EQ(::mincore(start, 16 * kPageSize, resident.data()), 0);
  EXPECT_EQ(std::count_if(resident.begin(), resident.end(), [](unsigned char r) { return (r & 1) != 0; }), 1);
}

// Against a map: a page that is found is always the one last put there, and no page appears by itself.
TEST(PageCache, NeverShowsAnotherPage) {
  Random random(5);
  PageCache cache = make_cache(256);
  std::map<size_t, unsigned> truth;
  for (int step = 0; step < 40000; ++step) {
    const size_t page = below(random, 600);
    const PageKey key = key_of(page / 2, static_cast<uint32_t>(page % 2));
    const auto value = static_cast<unsigned>(below(random, 256));
    const auto found = cache.lookup(key);
    if (found) {
      ASSERT_TRUE(truth.contains(page));
      ASSERT_EQ((*found)[below(random, kPageSize)], static_cast<std::byte>(truth[page]));
    }
    switch (below(random, 5)) {
      case 0:
        cache.evict(key), truth.erase(page);
        break;
      case 1:
        if (cache.update(key, filled_page(value))) truth[page] = value;
        break;
      case 2:
        cache.demote(key);
        break;
      case 3:
        if (step % 50 == 0) cache.begin_round();
        break;
      default:
        if (!found && cache.insert(key, filled_page(value), KeepBase::kYes)) truth[page] = value;
    }
  }
  EXPECT_GT(cache.stats().evictions, 100u);
}

}  // namespace
}  // namespace godwit::codec
