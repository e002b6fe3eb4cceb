#include "engine/tracee/shell_scratch.h"

#include <gtest/gtest.h>

namespace godwit::tracee {
namespace {

constexpr uint64_t kMiB = 1 << 20;

Layout areas(std::initializer_list<AddressRange> ranges) {
  Layout layout;
  for (const AddressRange range : ranges) layout.push_back(Vma{.range = range});
  return layout;
}

TEST(FindHole, TakesTheMiddleOfTheLargestGap) {
  const Layout layout = areas({range_of(0x400000, 100 * kMiB), range_of(200 * kMiB, 0x7ffffffde000),
                               range_of(0x7fffffffe000, kUserSpaceEnd)});
  const auto hole = find_hole(layout, kMiB, 4 * kMiB);
  ASSERT_TRUE(hole);
  EXPECT_EQ(hole->value(), 150 * kMiB - kMiB / 2);
}

TEST(FindHole, AnEmptyLayoutLeavesEverything) {
  const auto hole = find_hole({}, kMiB, 0);
  ASSERT_TRUE(hole);
  EXPECT_EQ(hole->value() % kPageSize, 0u);
  EXPECT_LT(hole->value(), kUserSpaceEnd);
}

TEST(FindHole, NothingWhenNoGapHoldsItAndItsMargins) {
  const Layout layout = areas({range_of(0x1000, 100 * kMiB), range_of(108 * kMiB, kUserSpaceEnd)});
  EXPECT_FALSE(find_hole(layout, kMiB, 4 * kMiB));
  EXPECT_TRUE(find_hole(layout, kMiB, 3 * kMiB));
}

TEST(FindHole, VsyscallAboveUserSpaceIsNoGap) {
  const Layout layout =
      areas({range_of(0x1000, kUserSpaceEnd), range_of(0xffffffffff600000, 0xffffffffff601000)});
  EXPECT_FALSE(find_hole(layout, kMiB, 0));
}

}  // namespace
}  // namespace godwit::tracee
