#include "engine/migration/sent_hashes.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

constexpr RemoteAddr kArea(0x40000000);

struct Page {
  explicit Page(int fill) { bytes.fill(static_cast<std::byte>(fill)); }
  std::array<std::byte, kPageSize> bytes;
};

SentHashes watching() {
  SentHashes sent;
  sent.watch({{kArea, kArea + 2 * kHugePageSize}});
  return sent;
}

TEST(SentHashes, KnowsWhatWasSentLastAndNothingBefore) {
  SentHashes sent = watching();
  EXPECT_FALSE(sent.is_known(kArea, Page(1).bytes));
  EXPECT_TRUE(sent.is_known(kArea, Page(1).bytes));
  EXPECT_FALSE(sent.is_known(kArea + kPageSize, Page(1).bytes)) << "another page";
  EXPECT_FALSE(sent.is_known(kArea, Page(2).bytes));
  EXPECT_FALSE(sent.is_known(kArea, Page(1).bytes)) << "what was sent before the last";
}

TEST(SentHashes, APageOfZerosIsSentOnce) {
  SentHashes sent = watching();
  EXPECT_FALSE(sent.is_known(kArea, Page(0).bytes)) << "the destination may show something else there";
  EXPECT_TRUE(sent.is_known(kArea, Page(0).bytes));
}

TEST(SentHashes, KeepsNothingOfOtherMemory) {
  SentHashes sent = watching();
  const RemoteAddr outside = kArea + 2 * kHugePageSize;
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(sent.is_known(outside, Page(1).bytes));
  SentHashes nothing;
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(nothing.is_known(kArea, Page(1).bytes));
}

TEST(SentHashes, ForgetsPartsAndWhatIsWatchedNoMore) {
  SentHashes sent = watching();
  const RemoteAddr next = kArea + kHugePageSize, last(next.value() - kPageSize);
  for (const RemoteAddr at : {kArea, last, next}) EXPECT_FALSE(sent.is_known(at, Page(1).bytes));
  sent.forget({last, next + kPageSize});
  EXPECT_TRUE(sent.is_known(kArea, Page(1).bytes));
  EXPECT_FALSE(sent.is_known(last, Page(1).bytes));
  EXPECT_FALSE(sent.is_known(next, Page(1).bytes));
  sent.watch({});
  sent.watch({{kArea, kArea + kHugePageSize}});
  EXPECT_FALSE(sent.is_known(kArea, Page(1).bytes)) << "it may have been mapped anew meanwhile";
}

TEST(SentHashes, FindsAPageThatWasNotZeros) {
  SentHashes sent = watching();
  EXPECT_EQ(sent.find_filled(kArea), std::nullopt);
  (void)sent.is_known(kArea, Page(0).bytes);
  EXPECT_EQ(sent.find_filled(kArea), std::nullopt);
  (void)sent.is_known(kArea + 5 * kPageSize, Page(1).bytes);
  EXPECT_EQ(sent.find_filled(kArea), kArea + 5 * kPageSize);
  (void)sent.is_known(kArea + 5 * kPageSize, Page(0).bytes);
  EXPECT_EQ(sent.find_filled(kArea), std::nullopt);
}

}  // namespace
}  // namespace godwit::migration
