#include "engine/model/page_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace godwit {
namespace {

AddressRange pages(uint64_t first, uint64_t count) {
  return range_of(first << kPageShift, (first + count) << kPageShift);
}

TEST(PageSet, RunsJoinAcrossWordsAndBlocks) {
  PageSet set;
  set.insert(pages(500, 30));
  set.insert(pages(530, 1));
  EXPECT_EQ(set.runs(), std::vector<AddressRange>{pages(500, 31)});
  set.erase(pages(510, 2));
  EXPECT_EQ(set.runs(), (std::vector<AddressRange>{pages(500, 10), pages(512, 19)}));
}

TEST(PageSet, ErasingATerabyteIsCheap) {
  PageSet set;
  set.insert(pages(7, 3));
  set.erase(range_of(0, uint64_t{1} << 46));
  EXPECT_TRUE(set.empty());
}

TEST(PageSet, RunsInManyRangesAreThoseOfEach) {
  std::mt19937 random(2);
  PageSet set;
  for (int i = 0; i < 500; ++i) set.insert(pages(random() % 4000, 1 + random() % 5));
  std::vector<AddressRange> ranges, each;
  for (uint64_t at = 0; at < 4000;) {
    ranges.push_back(pages(at, 1 + random() % 20));
    at = (ranges.back().end.value() >> kPageShift) + random() % 10;
  }
  for (const AddressRange& range : ranges)
    for (const AddressRange& run : set.runs_in(range)) each.push_back(run);
  EXPECT_EQ(set.runs_in(ranges), each);
  EXPECT_GT(each.size(), ranges.size() / 2);
  EXPECT_TRUE(set.runs_in(std::vector<AddressRange>()).empty());
}

TEST(PageSet, AgreesWithAPlainSet) {
  std::mt19937 random(1);
  PageSet set;
  std::set<uint64_t> plain;
  for (int i = 0; i < 4000; ++i) {
    const uint64_t first = random() % 3000, count = random() % 700;
    const bool add = random() % 2 == 0;
    add ? set.insert(pages(first, count)) : set.erase(pages(first, count));
    for (uint64_t p = first; p < first + count; ++p) add ? void(plain.insert(p)) : void(plain.erase(p));
  }
  EXPECT_EQ(set.size(), plain.size());
  for (uint64_t p = 0; p < 4000; ++p)
    EXPECT_EQ(set.contains(RemoteAddr(p << kPageShift)), plain.count(p) == 1) << p;
  uint64_t in_runs = 0;
  for (const auto& run : set.runs()) in_runs += run.pages();
  EXPECT_EQ(in_runs, plain.size());
}

}  // namespace
}  // namespace godwit
