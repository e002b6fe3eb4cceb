#include "engine/codec/zero_page.h"

#include <gtest/gtest.h>

#include "tests/unit/codec_test_pages.h"

namespace godwit::codec {
namespace {

TEST(ZeroPage, SeesEverySingleBit) {
  TestPage page{};
  EXPECT_TRUE(is_zero_page(page));
  for (size_t i = 0; i < kPageSize; ++i) {
    page[i] = std::byte{1} << static_cast<int>(i % 8);
    EXPECT_FALSE(is_zero_page(page)) << "byte " << i;
    page[i] = std::byte{0};
  }
  EXPECT_TRUE(is_zero_page(page));
}

TEST(ZeroPage, LooksAtThePageAloneAtAnyAlignment) {
  std::vector<std::byte> around(kPageSize + 128, std::byte{0xff});
  for (size_t shift = 1; shift < 64; ++shift) {
    const auto page = std::span(around).subspan(shift).first<kPageSize>();
    std::fill(page.begin(), page.end(), std::byte{0});
    EXPECT_TRUE(is_zero_page(page)) << "shift " << shift;
    std::fill(page.begin(), page.end(), std::byte{0xff});
  }
}

}  // namespace
}  // namespace godwit::codec
