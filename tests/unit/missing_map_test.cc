#include "uffd/missing_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace godwit::uffd {
namespace {

using testing::IsEmpty;

AddressRange pages(uint64_t first, uint64_t count) {
  return range_of(first * kPageSize, (first + count) * kPageSize);
}
RemoteAddr page(uint64_t number) {
  return RemoteAddr(number * kPageSize);
}
PageSet set_of(std::initializer_list<AddressRange> ranges) {
  PageSet set;
  for (const AddressRange range : ranges) set.insert(range);
  return set;
}

TEST(MissingMap, UnmovedAPageIsAtItsOrigin) {
  MissingMap map(set_of({pages(10, 4)}));
  EXPECT_EQ(map.origin_of(page(11)), page(11));
  const auto places = map.places_of(pages(8, 4));
  ASSERT_EQ(places.size(), 1U);
  EXPECT_EQ(places[0].now, pages(10, 2));
  EXPECT_EQ(places[0].origin, page(10));
  map.erase(pages(10, 4));
  EXPECT_TRUE(map.empty());
  EXPECT_THAT(map.places_of(pages(8, 4)), IsEmpty());
}

TEST(MissingMap, WhatMovedIsFoundByItsOriginAndNotWhereItStood) {
  MissingMap map(set_of({pages(10, 4), pages(20, 1)}));
  map.move(pages(10, 2), page(100));
  EXPECT_FALSE(map.contains(page(10)));
  EXPECT_TRUE(map.contains(page(101)));
  EXPECT_EQ(map.origin_of(page(101)), page(11));
  EXPECT_EQ(map.size(), 5U);
  const auto places = map.places_of(pages(11, 1));
  ASSERT_EQ(places.size(), 1U);
  EXPECT_EQ(places[0].now, pages(101, 1));
}

/// The kernel tells the old length of what shrinks as it moves: neighbours of the new place stay as they are.
TEST(MissingMap, AMoveLeavesTheNeighboursOfItsTargetAlone) {
  MissingMap map(set_of({pages(10, 4), pages(22, 2)}));
  map.erase(pages(12, 2));  // it shrinks
  map.move(pages(10, 4), page(20));
  EXPECT_EQ(map.size(), 4U);
  EXPECT_EQ(map.origin_of(page(21)), page(11));
  EXPECT_EQ(map.origin_of(page(22)), page(22));
  EXPECT_TRUE(map.contains(page(23)));
}

/// Against a plain map of pages, over many random moves and losses.
TEST(MissingMap, AgreesWithAMapOfPages) {
  std::mt19937 random(7);
  const auto below = [&](uint64_t limit) { return random() % limit; };
  MissingMap map(set_of({pages(0x100, 0x300)}));
  std::map<uint64_t, uint64_t> model;  // now -> origin
  for (uint64_t number = 0x100; number < 0x400; ++number) model[number] = number;
  for (int turn = 0; turn < 2000; ++turn) {
    const uint64_t from = 0x80 + below(0x400), count = 1 + below(40), to = 0x80 + below(0x400);
    const bool apart = from + count <= to || to + count <= from;
    if (below(3) == 0 || !apart) {
      map.erase(pages(from, 1));
      model.erase(from);
    } else {
      map.erase(pages(to, count));  // the event of what is unmapped there comes first
      map.move(pages(from, count), page(to));
      std::map<uint64_t, uint64_t> next;
      for (const auto& [now, origin] : model) {
        if (now >= from && now < from + count)
          next[now - from + to] = origin;
        else if (now < to || now >= to + count)
          next[now] = origin;
      }
      model = next;
    }
    ASSERT_EQ(map.size(), model.size()) << turn;
    for (const auto& [now, origin] : model) {
      ASSERT_TRUE(map.contains(page(now))) << turn;
      ASSERT_EQ(map.origin_of(page(now)), page(origin)) << turn;
    }
    std::map<uint64_t, uint64_t> found;
    for (const auto& place : map.places_of(pages(0, 0x1000))) {
      for (uint64_t i = 0; i < place.now.pages(); ++i)
        found[(place.now.start.value() >> kPageShift) + i] = (place.origin.value() >> kPageShift) + i;
    }
    ASSERT_EQ(found, model) << turn;
  }
}

}  // namespace
}  // namespace godwit::uffd
