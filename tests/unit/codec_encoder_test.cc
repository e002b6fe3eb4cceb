// Encoder and decoder as a pair: what the destination ends up with is what the source sent.
#include "engine/codec/encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <thread>

#include "engine/codec/decoder.h"
#include "tests/unit/codec_test_pages.h"

namespace godwit::codec {
namespace {

PageKey key_of(size_t page, uint32_t space = 0) {
  return {space, RemoteAddr(0x10000 + page * kPageSize)};
}

// One source and one destination, joined by a buffer with a fence behind it.
class Pair {
 public:
  explicit Pair(size_t cache_budget = 1_MiB) : encoder(PageEncoder::create(cache_budget).take()) {}

  EncodedPage send(PageKey key, PageView page, KeepBase keep = KeepBase::kYes, bool live = false) {
    out.fill(kFence);
    return deliver(key, encoder.encode({key, page, keep, live}, room()));
  }
  EncodedPage send_in_place(PageKey key, const TestPage& page) {
    out.fill(kFence);
    std::copy(page.begin(), page.end(), out.begin());
    return deliver(key,
                   encoder.encode({key, PageView(out.data(), kPageSize), KeepBase::kYes, false}, room()));
  }
  [[nodiscard]] const TestPage& destination(PageKey key) { return held_[{key.space, key.address}]; }
  std::span<std::byte> room() { return std::span(out).first(kMaxPayload); }

  PageEncoder encoder;
  std::array<std::byte, kMaxPayload + 64> out{};

 private:
  static constexpr std::byte kFence{0x5a};

  EncodedPage deliver(PageKey key, EncodedPage encoded) {
    EXPECT_TRUE(std::all_of(out.begin() + kMaxPayload, out.end(), [](std::byte b) { return b == kFence; }));
    TestPage& page = held_[{key.space, key.address}];
    if (encoded.encoding != PageEncoding::kUnchanged) {
      const Status decoded = decode_page(encoded.encoding, std::span(out).first(encoded.size), page);
      EXPECT_TRUE(decoded.ok()) << decoded.error().message();
    }
    return encoded;
  }

  std::map<std::pair<uint32_t, RemoteAddr>, TestPage> held_;
};

TEST(PageEncoder, PicksTheCheapestWay) {
  Random random(6);
  Pair pair;
  TestPage page = random_page(random);
  EXPECT_EQ(pair.send(key_of(1), page), (EncodedPage{PageEncoding::kRaw, kPageSize}));
  EXPECT_EQ(pair.send(key_of(1), page), (EncodedPage{PageEncoding::kUnchanged, 0}));
  page[700] ^= std::byte{1};
  EXPECT_EQ(pair.send(key_of(1), page), (EncodedPage{PageEncoding::kXbzrle, kBaseHashSize + 4}));
  EXPECT_EQ(pair.destination(key_of(1)), page);
  EXPECT_EQ(pair.send(key_of(1), TestPage{}), (EncodedPage{PageEncoding::kZero, 0}));
  EXPECT_EQ(pair.send(key_of(1), TestPage{}), (EncodedPage{PageEncoding::kUnchanged, 0}));
  EXPECT_EQ(pair.destination(key_of(1)), TestPage{});
  EXPECT_EQ(pair.send(key_of(1), page), (EncodedPage{PageEncoding::kRaw, kPageSize}))
      << "a delta does not pay";
  EXPECT_EQ(pair.destination(key_of(1)), page);
  page[0] ^= std::byte{1};
  EXPECT_EQ(pair.send(key_of(1), page), (EncodedPage{PageEncoding::kXbzrle, kBaseHashSize + 3}));

  const EncoderStats& stats = pair.encoder.stats();
  EXPECT_EQ(stats.zero, 1u);
  EXPECT_EQ(stats.raw, 2u);
  EXPECT_EQ(stats.xbzrle, 2u);
  EXPECT_EQ(stats.unchanged, 2u);
  EXPECT_EQ(stats.overflow, 1u);
  EXPECT_EQ(stats.xbzrle_bytes, 2 * kBaseHashSize + 7);
  EXPECT_EQ(stats.payload_bytes, 2 * kPageSize + stats.xbzrle_bytes);
}

TEST(PageEncoder, ADeltaOfSevenEighthsGoesRaw) {
  Pair pair;
  const auto send_changed = [&pair](size_t page, size_t changed) {
    TestPage bytes = filled_page(1);
    pair.send(key_of(page), bytes);
    std::fill_n(bytes.begin() + 8, changed, std::byte{2});
    return pair.send(key_of(page), bytes);
  };
  constexpr size_t kMost =
      kPageSize / 8 * 7 - kBaseHashSize - 3 - 2;  // two lengths, and two bytes free for the next
  EXPECT_EQ(send_changed(1, kMost).encoding, PageEncoding::kXbzrle);
  EXPECT_EQ(send_changed(2, kMost + 1).encoding, PageEncoding::kRaw);
}

TEST(PageEncoder, WithoutACacheThereAreNoDeltas) {
  Pair pair(0);
  TestPage page = filled_page(7);
  EXPECT_EQ(pair.send(key_of(1), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send(key_of(1), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send(key_of(1), TestPage{}).encoding, PageEncoding::kZero);
  pair.encoder.begin_round();
  pair.encoder.discard(0, range_of(0, UINT64_MAX));
  pair.encoder.forget_all();
  EXPECT_EQ(pair.encoder.cache_stats().misses, 0u);
}

TEST(PageEncoder, KeepsBasesAsAsked) {
  Pair pair;
  TestPage page = filled_page(7);
  EXPECT_EQ(pair.send(key_of(1), page, KeepBase::kNo).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send(key_of(1), page, KeepBase::kNo).encoding, PageEncoding::kRaw) << "was not kept";
  EXPECT_EQ(pair.send(key_of(1), page, KeepBase::kIfRoom).encoding, PageEncoding::kRaw);
  page[1] = std::byte{8};
  EXPECT_EQ(pair.send(key_of(1), page, KeepBase::kNo).encoding, PageEncoding::kXbzrle) << "held since";
  EXPECT_EQ(pair.send(key_of(1), page, KeepBase::kNo).encoding, PageEncoding::kUnchanged)
      << "and kept current";
  EXPECT_EQ(pair.send(key_of(2), TestPage{}, KeepBase::kIfRoom).encoding, PageEncoding::kZero);
  EXPECT_EQ(pair.encoder.cache_stats().insertions, 1u) << "a zero page is no base worth a free place";
  EXPECT_EQ(pair.send(key_of(2), TestPage{}, KeepBase::kYes).encoding, PageEncoding::kZero);
  EXPECT_EQ(pair.encoder.cache_stats().insertions, 2u);
}

TEST(PageEncoder, APageWhoseDeltasDoNotPayLosesItsPlaceFirst) {
  Random random(11);
  Pair pair(PageCache::kMinBudget);  // one set
  for (size_t i = 0; i < PageCache::kWays; ++i) pair.send(key_of(i), random_page(random));
  pair.send(key_of(3), random_page(random));
  EXPECT_EQ(pair.encoder.stats().overflow, 1u);
  const TestPage page = filled_page(7);
  EXPECT_EQ(pair.send(key_of(20), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send(key_of(20), page).encoding, PageEncoding::kUnchanged);
  EXPECT_EQ(pair.encoder.cache_stats().evictions, 1u);
}

TEST(PageEncoder, ForgetsWhatTheDestinationMayNotHold) {
  Pair pair;
  const TestPage page = filled_page(7);
  for (size_t i = 1; i <= 3; ++i) pair.send(key_of(i), page);
  pair.encoder.discard(0, {key_of(1).address, key_of(2).address});
  EXPECT_EQ(pair.send(key_of(1), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send(key_of(2), page).encoding, PageEncoding::kUnchanged);
  pair.encoder.forget_all();
  EXPECT_EQ(pair.send(key_of(2), page).encoding, PageEncoding::kRaw);
}

// A page that another thread writes all the time, through a mapping of its own as the target would. If the
// encoder remembered anything but what it sent, a later delta would not match the destination's base.
TEST(PageEncoder, ALivePageIsRememberedAsItWasSent) {
  const int memory = ::memfd_create("a live page", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(memory, kPageSize), 0);
  const auto map = [memory] {
    return Mapping::create(kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, memory).take();
  };
  const Mapping ours = map(), theirs = map();
  ::close(memory);
  std::atomic<bool> stop = false, begun = false;
  std::jthread writer([&] {
    Random random(7);
    for (begun = true, begun.notify_one(); !stop;)
      theirs.data()[below(random, kPageSize)] = static_cast<std::byte>(random());
  });
  Pair pair;
  const PageView live(ours.data(), kPageSize);
  begun.wait(false);
  while (pair.encoder.stats().xbzrle < 2000 && !HasFailure())
    pair.send(key_of(1), live, KeepBase::kYes, true);
  stop = true;
  writer.join();
  pair.send(key_of(1), live, KeepBase::kYes, true);
  EXPECT_TRUE(std::equal(live.begin(), live.end(), pair.destination(key_of(1)).begin()));
}

TEST(PageEncoder, APageInItsOwnOutputIsEncodedInPlace) {
  Random random(8);
  Pair pair;
  TestPage page = random_page(random);
  EXPECT_EQ(pair.send_in_place(key_of(1), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.send_in_place(key_of(1), page).encoding, PageEncoding::kUnchanged);
  for (int round = 0; round < 50; ++round) {
    scribble(random, page, 10, 40);
    ASSERT_EQ(pair.send_in_place(key_of(1), page).encoding, PageEncoding::kXbzrle);
    ASSERT_EQ(pair.destination(key_of(1)), page);
  }
  page = random_page(random);
  EXPECT_EQ(pair.send_in_place(key_of(1), page).encoding, PageEncoding::kRaw);
  EXPECT_EQ(pair.destination(key_of(1)), page);
}

// Rounds over more pages than fit, with every kind of change. The destination equals the source after each
// send.
TEST(PageEncoder, TheDestinationFollowsAnyHistory) {
  Random random(9);
  Pair pair(PageCache::kBytesPerEntry * 64);
  std::map<size_t, TestPage> source;
  for (int round = 0; round < 40; ++round) {
    if (round > 0) pair.encoder.begin_round();
    for (size_t i = 0; i < 100; ++i) {
      TestPage& page = source[i];
      switch (below(random, 8)) {
        case 0:
          page = TestPage{};
          break;
        case 1:
          page = random_page(random);
          break;
        case 2:
          scribble(random, page, 300, 12);
          break;
        case 3:
          break;
        default:
          scribble(random, page, 5, 30);
      }
      const auto keep = static_cast<KeepBase>(1 + below(random, 3));
      const PageKey key = key_of(i / 2, static_cast<uint32_t>(i % 2));
      if (i % 10 == 0) {
        pair.send_in_place(key, page);
      } else {
        pair.send(key, page, keep, below(random, 2) == 0);
      }
      ASSERT_EQ(pair.destination(key), page) << "round " << round << " page " << i;
    }
  }
  const EncoderStats& stats = pair.encoder.stats();
  EXPECT_GT(stats.xbzrle, 500u);
  EXPECT_GT(stats.unchanged, 100u);
  EXPECT_GT(stats.overflow, 50u);
  EXPECT_EQ(stats.zero + stats.raw + stats.xbzrle + stats.unchanged, 4000u);
}

TEST(PageDecoder, RefusesWhatNoEncoderSends) {
  const auto refuse = [](PageEncoding encoding, size_t size, std::string_view why) {
    TestPage page = filled_page(3);
    const std::vector<std::byte> payload(size, std::byte{0x11});
    const Status status = decode_page(encoding, payload, page);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().kind, ErrorKind::kCorrupt);
    EXPECT_THAT(status.error().message(), testing::HasSubstr(std::string(why)));
    EXPECT_EQ(page, filled_page(3));
  };
  refuse(PageEncoding::kInvalid, 0, "unknown encoding 0");
  refuse(static_cast<PageEncoding>(200), 10, "unknown encoding 200");
  refuse(PageEncoding::kUnchanged, 0, "never travels");
  refuse(PageEncoding::kZero, 1, "carries a payload");
  refuse(PageEncoding::kRaw, kPageSize - 1, "not one page long");
  refuse(PageEncoding::kRaw, kPageSize + 1, "not one page long");
  refuse(PageEncoding::kXbzrle, kBaseHashSize - 1, "without a change");
  refuse(PageEncoding::kXbzrle, kBaseHashSize, "without a change");
  refuse(PageEncoding::kXbzrle, 40, "against base 11111111");
}

TEST(PageDecoder, AWrongBaseIsAnError) {
  Random random(10);
  Pair pair;
  TestPage page = random_page(random);
  pair.send(key_of(1), page);
  TestPage other = page;
  other[4000] ^= std::byte{0x80};
  page[5] ^= std::byte{1};
  const EncodedPage encoded = pair.send(key_of(1), page);
  ASSERT_EQ(encoded.encoding, PageEncoding::kXbzrle);
  const TestPage before = other;
  const Status status = decode_page(encoded.encoding, std::span(pair.out).first(encoded.size), other);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::kCorrupt);
  EXPECT_EQ(other, before);
}

// Golden: the hash is part of the stream format, whichever instructions compute it.
TEST(PageEncoding, TheHashOfABaseIsFixed) {
  TestPage counting;
  for (size_t i = 0; i < kPageSize; ++i) counting[i] = static_cast<std::byte>(i * 7 + i / 256);
  EXPECT_EQ(base_hash(TestPage{}), 0x48c689bau);
  EXPECT_EQ(base_hash(counting), 0xeb6f9064u);
}

}  // namespace
}  // namespace godwit::codec
