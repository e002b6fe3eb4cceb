#include "engine/codec/diff_mask.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/codec_test_pages.h"

namespace godwit::codec {
namespace {

DiffCount naive_count(std::span<const std::byte> a, std::span<const std::byte> b) {
  DiffCount count;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    ++count.bytes;
    if (i == 0 || a[i - 1] == b[i - 1]) ++count.runs;
  }
  return count;
}

bool bit(const DiffMask& mask, size_t i) {
  return (mask.words[i / 64] >> (i % 64) & 1) != 0;
}

// Every kernel of this CPU, at sizes around its steps and at odd addresses, beside bytes that differ behind
// the end.
TEST(DiffMask, EveryKernelAgreesWithAPlainLoop) {
  Random random(1);
  for (const DiffKernel& kernel : diff_kernels()) {
    for (int round = 0; round < 400; ++round) {
      const size_t size = round < 200 ? static_cast<size_t>(round) : below(random, kMaxBlock + 1);
      const size_t shift = below(random, 64);
      std::vector<std::byte> a(shift + size + 64), b;
      fill_random(random, a);
      b = a;
      if (size > 0) scribble(random, std::span(b).subspan(shift, size), 30, 1 + below(random, 200));
      b[shift + size] ^= std::byte{1};
      DiffMask mask;
      mask.words.fill(0xaaaaaaaaaaaaaaaa);
      const DiffCount count = kernel.diff(a.data() + shift, b.data() + shift, size, mask);
      const auto old_bytes = std::span(a).subspan(shift, size), new_bytes = std::span(b).subspan(shift, size);
      ASSERT_EQ(count, naive_count(old_bytes, new_bytes)) << kernel.name << " size " << size;
      for (size_t i = 0; i < size; ++i) {
        ASSERT_EQ(bit(mask, i), old_bytes[i] != new_bytes[i])
            << kernel.name << " size " << size << " byte " << i;
      }
    }
  }
}

TEST(DiffMask, ListsStartsAndEnds) {
  TestPage a{}, b{};
  for (const size_t i : {0u, 63u, 64u, 65u, 2000u, 4095u}) b[i] = std::byte{1};
  DiffMask mask;
  DiffEdges edges;
  EXPECT_EQ(diff(a.data(), b.data(), kPageSize, mask), (DiffCount{6, 4}));
  const size_t count = list_edges(mask, kPageSize, edges);
  EXPECT_THAT(std::vector(edges.at.begin(), edges.at.begin() + static_cast<ptrdiff_t>(count)),
              testing::ElementsAre(0, 1, 63, 66, 2000, 2001, 4095, 4096));
  diff(a.data(), a.data(), kPageSize, mask);
  EXPECT_EQ(list_edges(mask, kPageSize, edges), 0u);
}

TEST(DiffMask, ARunThatEndsWithTheBlockHasAnEnd) {
  const std::vector<std::byte> a(kMaxBlock, std::byte{0}), b(kMaxBlock, std::byte{1});
  for (const size_t size : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, kPageSize, kMaxBlock}) {
    DiffMask mask;
    DiffEdges edges;
    EXPECT_EQ(diff(a.data(), b.data(), size, mask), (DiffCount{size, 1}));
    ASSERT_EQ(list_edges(mask, size, edges), 2u) << size;
    EXPECT_EQ(edges.at[0], 0u);
    EXPECT_EQ(edges.at[1], size);
  }
}

TEST(DiffMask, EverySecondByteIsTheMostEdges) {
  const std::vector<std::byte> a(kMaxBlock, std::byte{0});
  std::vector<std::byte> b = a;
  for (size_t i = 1; i < kMaxBlock; i += 2) b[i] = std::byte{1};
  DiffMask mask;
  DiffEdges edges;
  EXPECT_EQ(diff(a.data(), b.data(), kMaxBlock, mask), (DiffCount{kMaxBlock / 2, kMaxBlock / 2}));
  EXPECT_EQ(list_edges(mask, kMaxBlock, edges), kMaxBlock);
  EXPECT_EQ(edges.at[kMaxBlock - 1], kMaxBlock);
}

}  // namespace
}  // namespace godwit::codec
