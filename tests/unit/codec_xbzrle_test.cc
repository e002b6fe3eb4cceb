#include "engine/codec/xbzrle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/codec/diff_mask.h"
#include "engine/codec/run_writer.h"
#include "tests/unit/codec_test_pages.h"
#include "tests/unit/codec_vectors.h"

namespace godwit::codec {
namespace {

const std::vector<Vector>& vectors() {
  static const std::vector<Vector> all = VectorReader(GODWIT_TEST_DATA "/xbzrle/vectors.bin").read_all();
  return all;
}

DeltaResult expected_result(const Vector& v) {
  if (v.result < 0) return {DeltaOutcome::kOverflow, 0};
  if (v.result == 0) return {DeltaOutcome::kUnchanged, 0};
  return {DeltaOutcome::kEncoded, static_cast<size_t>(v.result)};
}

// An output buffer with a fence behind it.
class Fenced {
 public:
  explicit Fenced(size_t room) : bytes_(room + kFence, kMark), room_(room) {}
  std::span<std::byte> room() { return std::span(bytes_).first(room_); }
  [[nodiscard]] bool intact() const {
    return std::all_of(bytes_.begin() + static_cast<ptrdiff_t>(room_), bytes_.end(),
                       [](std::byte b) { return b == kMark; });
  }
  ByteVector front(size_t n) { return {bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(n)}; }

 private:
  static constexpr size_t kFence = 64;
  static constexpr std::byte kMark{0xa5};
  ByteVector bytes_;
  size_t room_;
};

// The format straight from its grammar, with the encoder's rule of two free bytes before each length.
DeltaResult naive_encode(std::span<const std::byte> a, std::span<const std::byte> b, size_t room,
                         ByteVector& out) {
  const auto put = [&out](size_t n) {
    if (n >= 0x80) out.push_back(static_cast<std::byte>(n % 128 + 128));
    out.push_back(static_cast<std::byte>(n >= 0x80 ? n / 128 : n));
  };
  size_t i = 0;
  while (i < b.size()) {
    if (out.size() + 2 > room) return {DeltaOutcome::kOverflow, 0};
    const size_t skipped = i;
    while (i < b.size() && a[i] == b[i]) ++i;
    if (i == b.size()) break;
    put(i - skipped);
    if (out.size() + 2 > room) return {DeltaOutcome::kOverflow, 0};
    const size_t start = i;
    while (i < b.size() && a[i] != b[i]) ++i;
    put(i - start);
    out.insert(out.end(), b.begin() + static_cast<ptrdiff_t>(start), b.begin() + static_cast<ptrdiff_t>(i));
    if (out.size() > room) return {DeltaOutcome::kOverflow, 0};
  }
  if (out.empty()) return {DeltaOutcome::kUnchanged, 0};
  return {DeltaOutcome::kEncoded, out.size()};
}

TEST(Xbzrle, TheVectorsAreAllThere) {
  size_t encode = 0, malformed = 0;
  for (const Vector& v : vectors()) {
    encode += v.encode ? 1 : 0;
    malformed += !v.encode && v.result < 0 ? 1 : 0;
  }
  EXPECT_EQ(vectors().size(), 79u);
  EXPECT_EQ(encode, 66u);
  EXPECT_EQ(malformed, 8u);
}

TEST(Xbzrle, EncodesTheReferenceVectorsByteForByte) {
  for (const Vector& v : vectors()) {
    if (!v.encode) continue;
    SCOPED_TRACE(v.name);
    Fenced out(v.room);
    const DeltaResult result = encode_xbzrle(v.old_page, v.new_page, out.room());
    EXPECT_EQ(result, expected_result(v));
    EXPECT_EQ(out.front(result.size), v.delta);
    EXPECT_TRUE(out.intact());
  }
}

TEST(Xbzrle, DecodesTheReferenceVectorsAndTheirEncodings) {
  for (const Vector& v : vectors()) {
    if (v.result < 0) continue;
    SCOPED_TRACE(v.name);
    ByteVector page = v.old_page;
    const Result<size_t> end = decode_xbzrle(v.delta, page);
    ASSERT_TRUE(end.ok()) << end.error().message();
    EXPECT_EQ(page, v.new_page);
    EXPECT_TRUE(v.encode || end.value() == static_cast<size_t>(v.result)) << end.value();
  }
}

TEST(Xbzrle, RefusesMalformedVectorsAndLeavesThePage) {
  for (const Vector& v : vectors()) {
    if (v.encode || v.result >= 0) continue;
    SCOPED_TRACE(v.name);
    ByteVector page = v.old_page;
    const Result<size_t> end = decode_xbzrle(v.delta, page);
    ASSERT_FALSE(end.ok());
    EXPECT_EQ(end.error().kind, ErrorKind::kCorrupt);
    EXPECT_EQ(page, v.old_page);
  }
}

TEST(Xbzrle, NamesOffsetAndRule) {
  const auto message = [](std::vector<unsigned> delta) {
    ByteVector bytes;
    for (const unsigned b : delta) bytes.push_back(static_cast<std::byte>(b));
    TestPage page{};
    return decode_xbzrle(bytes, page).error().message();
  };
  using testing::AllOf, testing::HasSubstr;
  EXPECT_THAT(message({5}), AllOf(HasSubstr("ends where a length must stand"), HasSubstr("byte 1 of 1")));
  EXPECT_THAT(message({0x85}), AllOf(HasSubstr("ends inside a length"), HasSubstr("byte 0 of 1")));
  EXPECT_THAT(message({0x80, 0x80, 1}), HasSubstr("more than two bytes"));
  EXPECT_THAT(message({5, 0}), AllOf(HasSubstr("no changed bytes"), HasSubstr("byte 2 of 2")));
  EXPECT_THAT(message({0, 1, 7, 0, 1, 7}), AllOf(HasSubstr("no equal bytes"), HasSubstr("byte 4 of 6")));
  EXPECT_THAT(message({0x81, 0x20, 1, 7}), HasSubstr("equal bytes reach beyond the page"));
  EXPECT_THAT(message({0xff, 0x1f, 2, 7, 7}), HasSubstr("changed bytes reach beyond the page"));
  EXPECT_THAT(message({0, 3, 7, 7}), HasSubstr("inside a run"));
}

TEST(Xbzrle, RandomPagesAgreeWithThePlainEncoderAndComeBack) {
  Random random(2);
  size_t encoded = 0, overflowed = 0;
  for (int round = 0; round < 4000; ++round) {
    const size_t size = round % 4 == 0 ? 1 + below(random, kMaxBlock) : kPageSize;
    ByteVector old_page(size);
    fill_random(random, old_page);
    ByteVector new_page = old_page;
    scribble(random, new_page, size_t{1} << below(random, 11), size_t{1} << below(random, 12));
    const size_t room = round % 2 == 0 ? size : below(random, size + 8);
    Fenced out(room);
    ByteVector expected;
    const DeltaResult want = naive_encode(old_page, new_page, room, expected);
    const DeltaResult got = encode_xbzrle(old_page, new_page, out.room());
    ASSERT_EQ(got, want) << "round " << round << " size " << size << " room " << room;
    ASSERT_TRUE(out.intact()) << "round " << round;
    overflowed += got.outcome == DeltaOutcome::kOverflow ? 1 : 0;
    if (got.outcome != DeltaOutcome::kEncoded) continue;
    ++encoded;
    ASSERT_EQ(out.front(got.size), expected) << "round " << round;
    ASSERT_TRUE(decode_xbzrle(out.room().first(got.size), old_page).ok());
    ASSERT_EQ(old_page, new_page) << "round " << round;
  }
  EXPECT_GT(encoded, 1000u);
  EXPECT_GT(overflowed, 300u);
}

// Each writer of this CPU gives what the grammar says: pages in fragments with stretches of long lengths,
// runs at the first and the last byte, blocks that end inside a vector, and rooms that are too small.
TEST(Xbzrle, EveryRunWriterGivesTheSameBytes) {
  Random random(5);
  for (const RunWriter& writer : run_writers()) {
    size_t written = 0, overflowed = 0;
    for (int round = 0; round < 4000; ++round) {
      const size_t size = round % 4 == 0 ? 1 + below(random, kMaxBlock) : kPageSize;
      ByteVector old_page(size);
      fill_random(random, old_page);
      ByteVector new_page = old_page;
      // Fragments of some density in one part of the block, a few longer runs anywhere.
      const size_t first = below(random, 2) * below(random, size), every = 1 + below(random, 100);
      const size_t last = first + below(random, 2 * (size - first));
      for (size_t i = first; i < std::min(last, size); ++i) {
        if (below(random, every) == 0) new_page[i] ^= std::byte{0x5a};
      }
      if (round % 3 == 0) scribble(random, new_page, 4, 400);
      DiffMask mask;
      const DiffCount count = diff(old_page.data(), new_page.data(), size, mask);
      if (count.bytes == 0 || count.bytes > kMaxLength) continue;
      const size_t room = round % 2 == 0 ? size + 64 : below(random, size + 8);
      Fenced out(room);
      ByteVector expected;
      const DeltaResult want = naive_encode(old_page, new_page, room, expected);
      const size_t got = writer.write(mask, count, new_page, out.room());
      ASSERT_TRUE(out.intact()) << writer.name << " round " << round;
      ASSERT_EQ(got, want.outcome == DeltaOutcome::kEncoded ? want.size : kNoRoom)
          << writer.name << " round " << round << " size " << size << " room " << room;
      overflowed += got == kNoRoom ? 1 : 0;
      if (got == kNoRoom) continue;
      ASSERT_EQ(out.front(got), expected) << writer.name << " round " << round;
      ++written;
    }
    EXPECT_GT(written, 2000u) << writer.name;
    EXPECT_GT(overflowed, 100u) << writer.name;
  }
}

// Every room from nothing to more than enough: the bound holds and the smallest that works is the
// reference's.
TEST(Xbzrle, NeverWritesPastTheRoomItHas) {
  Random random(3);
  const TestPage old_page = random_page(random);
  TestPage new_page = old_page;
  scribble(random, new_page, 40, 30);
  for (size_t room = 0; room < 1200; ++room) {
    Fenced out(room);
    ByteVector ignored;
    ASSERT_EQ(encode_xbzrle(old_page, new_page, out.room()), naive_encode(old_page, new_page, room, ignored))
        << room;
    ASSERT_TRUE(out.intact()) << room;
  }
}

TEST(Xbzrle, ABlockWithoutAnEqualByteNeedsALengthThatFits) {
  const ByteVector old_block(kMaxBlock, std::byte{0}), new_block(kMaxBlock, std::byte{1});
  Fenced out(2 * kMaxBlock);
  EXPECT_EQ(encode_xbzrle(old_block, new_block, out.room()), (DeltaResult{DeltaOutcome::kOverflow, 0}));
  EXPECT_EQ(encode_xbzrle({}, {}, {}), (DeltaResult{DeltaOutcome::kUnchanged, 0}));
}

// Damaged deltas: whatever is not refused is a legal delta, and whatever is refused leaves no trace.
TEST(Xbzrle, ADamagedDeltaIsAllOrNothing) {
  Random random(4);
  size_t refused = 0;
  for (int round = 0; round < 5000; ++round) {
    const TestPage old_page = random_page(random);
    TestPage new_page = old_page;
    scribble(random, new_page, 20, 20);
    Fenced out(kPageSize);
    const DeltaResult delta = encode_xbzrle(old_page, new_page, out.room());
    ASSERT_EQ(delta.outcome, DeltaOutcome::kEncoded);
    ByteVector damaged = out.front(delta.size);
    scribble(random, damaged, 3, 2);
    damaged.resize(below(random, damaged.size() + 1));
    TestPage page = old_page;
    const Result<size_t> end = decode_xbzrle(damaged, page);
    if (end.ok()) {
      EXPECT_TRUE(std::equal(page.begin() + static_cast<ptrdiff_t>(end.value()), page.end(),
                             old_page.begin() + static_cast<ptrdiff_t>(end.value())));
      continue;
    }
    ++refused;
    ASSERT_EQ(page, old_page) << "round " << round << ": " << end.error().message();
  }
  EXPECT_GT(refused, 1000u);
}

}  // namespace
}  // namespace godwit::codec
