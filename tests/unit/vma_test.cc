#include "engine/model/vma.h"

#include <gtest/gtest.h>

namespace godwit {
namespace {

TEST(Vma, FindsTheAreaThatHoldsAnAddress) {
  Layout layout(2);
  layout[0].range = range_of(0x1000, 0x3000);
  layout[1].range = range_of(0x5000, 0x6000);
  EXPECT_EQ(find_vma(layout, RemoteAddr(0x2fff)), &layout[0]);
  EXPECT_EQ(find_vma(layout, RemoteAddr(0x3000)), nullptr);
  EXPECT_EQ(find_vma(layout, RemoteAddr(0x5000)), &layout[1]);
  EXPECT_EQ(find_vma(layout, RemoteAddr(0x6000)), nullptr);
}

TEST(AddressRange, IntersectionIsNeverNegative) {
  EXPECT_EQ(intersect(range_of(0, 10), range_of(5, 20)), range_of(5, 10));
  EXPECT_TRUE(intersect(range_of(0, 10), range_of(20, 30)).empty());
}

}  // namespace
}  // namespace godwit
