// Packed batches: what is packed comes back, nothing else does, and no byte is written beyond what was said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "engine/base/files.h"
#include "engine/base/units.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_reader.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/printer.h"
#include "engine/wire/record_reader.h"
#include "tests/unit/wire_memory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace godwit::wire {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr Packing kPackings[] = {Packing::kLz4, Packing::kZstd};

Record record_of(const Bytes& payload, RecordType type = RecordType::kPacked) {
  return {type, 12, 3, payload};
}

/// The payload of a batch of `pages` raw pages, words of text, and a run of zeros.
Bytes text_batch(size_t pages, RecordType type = RecordType::kPages) {
  PageBatchWriter batch = PageBatchWriter::create().take();
  if (type == RecordType::kPages)
    batch.begin(0);
  else
    batch.begin_object(7);
  Bytes text(pages * kPageSize);
  for (size_t i = 0; i < text.size(); ++i)
    text[i] = static_cast<std::byte>("some words, "[i % 12] ^ static_cast<char>(i / 4096 % 32));
  EXPECT_TRUE(batch.append_raw(0x10000000, text));
  EXPECT_TRUE(batch.append_zero(0x20000000, 9));
  EXPECT_EQ(batch.raw_bytes(), pages * kPageSize);
  const auto record = batch.finish().subspan(sizeof(RecordHeader));
  return {record.begin(), record.end()};
}

Bytes noise(size_t size) {
  std::mt19937_64 random(42);
  Bytes bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

Bytes packed(Packing packing, const Bytes& payload, RecordType type = RecordType::kPages) {
  Packer packer;
  const auto bytes = packer.pack(packing, type, payload);
  return {bytes.begin(), bytes.end()};
}

void put(Bytes& payload, size_t at, uint32_t value) {
  const Le32 word(value);
  std::memcpy(payload.data() + at, &word, sizeof word);
}

TEST(WirePacked, WhatIsPackedComesBack) {
  Packer packer;
  Unpacker unpacker;
  for (const RecordType type : {RecordType::kPages, RecordType::kObjectPages}) {
    for (const Packing packing : kPackings) {
      for (const size_t pages : {size_t{256}, size_t{1}, size_t{40}}) {
        const Bytes batch = text_batch(pages, type);
        const auto bytes = packer.pack(packing, type, batch);
        ASSERT_FALSE(bytes.empty());
        EXPECT_LT(bytes.size(), batch.size() / 2);
        const Bytes payload(bytes.begin(), bytes.end());
        const Record within = unpacker.unpack(record_of(payload)).take();
        EXPECT_EQ(within.type, type);
        EXPECT_EQ(within.sequence, 12u);
        EXPECT_EQ(within.channel, 3u);
        EXPECT_TRUE(std::equal(within.payload.begin(), within.payload.end(), batch.begin(), batch.end()));
        EXPECT_TRUE(PageBatchReader::open(within).ok());
      }
    }
  }
}

TEST(WirePacked, TheLargestBatchFits) {
  for (const Packing packing : kPackings) {
    Bytes largest(kBatchRecord);
    const Bytes payload = packed(packing, largest);
    ASSERT_FALSE(payload.empty());
    EXPECT_EQ(Unpacker().unpack(record_of(payload)).take().payload.size(), kBatchRecord);
  }
}

TEST(WirePacked, WhatHardlyShrinksIsNotPacked) {
  Packer packer;
  for (const Packing packing : kPackings) {
    EXPECT_TRUE(packer.pack(packing, RecordType::kPages, noise(1_MiB)).empty());
    EXPECT_TRUE(packer.pack(packing, RecordType::kPages, Bytes(16)).empty());
    EXPECT_TRUE(packer.pack(packing, RecordType::kPages, Bytes()).empty());
    // Fifteen parts of noise and one of zeros: a sixteenth at the best.
    Bytes mostly = noise(1_MiB);
    std::fill(mostly.begin(), mostly.begin() + 60_KiB, std::byte{0});
    EXPECT_TRUE(packer.pack(packing, RecordType::kPages, mostly).empty());
    std::fill(mostly.begin(), mostly.begin() + 80_KiB, std::byte{0});
    const auto bytes = packer.pack(packing, RecordType::kPages, mostly);
    ASSERT_FALSE(bytes.empty());
    EXPECT_LE(bytes.size(), mostly.size() - mostly.size() / 16);
  }
}

/// Some bits do not matter: from within a run of zeros, another distance copies the same.
TEST(WirePacked, AFlippedBitIsRefusedOrChangesNothing) {
  for (const Packing packing : kPackings) {
    const Bytes batch = text_batch(2);
    Bytes payload = packed(packing, batch);
    size_t refused = 0;
    Unpacker unpacker;
    for (size_t bit = 0; bit < payload.size() * 8; ++bit) {
      const auto mask = static_cast<std::byte>(1u << (bit % 8));
      payload[bit / 8] ^= mask;
      const Result<Record> got = unpacker.unpack(record_of(payload));
      payload[bit / 8] ^= mask;
      if (got.ok()) {
        ASSERT_EQ(got.value().type, RecordType::kPages) << to_string(packing) << " bit " << bit;
        const auto came = got.value().payload;
        ASSERT_TRUE(std::equal(came.begin(), came.end(), batch.begin(), batch.end())) << bit;
        continue;
      }
      ++refused;
      EXPECT_THAT(got.error().subject, StartsWith("record 12 (packed) of channel 3"));
      EXPECT_TRUE(got.error().kind == ErrorKind::kCorrupt || got.error().kind == ErrorKind::kUnsupported);
    }
    EXPECT_GT(refused, payload.size() * 6) << "of eight a byte";
    EXPECT_TRUE(unpacker.unpack(record_of(payload)).ok()) << "none of them has harmed it";
  }
}

TEST(WirePacked, EveryCutIsRefused) {
  for (const Packing packing : kPackings) {
    const Bytes payload = packed(packing, text_batch(2));
    for (size_t size = 0; size < payload.size(); ++size) {
      const Result<Record> got =
          Unpacker().unpack({RecordType::kPacked, 12, 3, std::span(payload).first(size)});
      ASSERT_FALSE(got.ok()) << to_string(packing) << " " << size;
      EXPECT_EQ(got.error().kind, ErrorKind::kCorrupt);
    }
  }
}

TEST(WirePacked, ALengthIsBelievedWithinBoundsAlone) {
  for (const Packing packing : kPackings) {
    const Bytes batch = text_batch(16);
    const Bytes good = packed(packing, batch);
    const auto with_length = [&](uint32_t length) {
      Bytes changed = good;
      put(changed, 8, length);
      return Unpacker().unpack(record_of(changed));
    };
    ASSERT_TRUE(with_length(static_cast<uint32_t>(batch.size())).ok());
    for (const uint32_t length : {0u, 1u, 0xffffffffu, static_cast<uint32_t>(kBatchRecord) + 1,
                                  static_cast<uint32_t>(good.size() - sizeof(PackedHeader))}) {
      const Result<Record> got = with_length(length);
      ASSERT_FALSE(got.ok());
      EXPECT_THAT(got.error().operation, HasSubstr("at most"));
    }
    // More and less than comes out, all of it allowed: the sanitizers see a byte written too much.
    for (const size_t length : {good.size(), batch.size() - 1, batch.size() + 1, kBatchRecord}) {
      const Result<Record> got = with_length(static_cast<uint32_t>(length));
      ASSERT_FALSE(got.ok());
      EXPECT_THAT(got.error().operation, HasSubstr("unpacking"));
    }
  }
}

TEST(WirePacked, OnlyBatchesAndKnownPackingsAreTaken) {
  const Bytes good = packed(Packing::kLz4, text_batch(4));
  for (const uint32_t type : {0u, 1u, static_cast<uint32_t>(RecordType::kPacked), 4711u, 0x80000011u}) {
    Bytes changed = good;
    put(changed, 0, type);
    EXPECT_EQ(Unpacker().unpack(record_of(changed)).error().kind, ErrorKind::kCorrupt) << type;
  }
  for (const uint32_t packing : {0u, 3u, 0x101u}) {
    Bytes changed = good;
    put(changed, 4, packing);
    const Result<Record> got = Unpacker().unpack(record_of(changed));
    ASSERT_FALSE(got.ok());
    EXPECT_EQ(got.error().kind, ErrorKind::kUnsupported) << packing;
  }
  EXPECT_FALSE(Unpacker().unpack(record_of(good, RecordType::kPages)).ok());
  Bytes other = good;
  put(other, 4, static_cast<uint32_t>(Packing::kZstd));
  EXPECT_FALSE(Unpacker().unpack(record_of(other)).ok()) << "it is packed otherwise";
}

TEST(WirePacked, ItIsPrintedWithWhatIsInIt) {
  const Bytes payload = packed(Packing::kZstd, text_batch(256));
  EXPECT_EQ(describe(record_of(payload)),
            fmt::format("12 packed {} bytes: zstd of pages 1048624 bytes: process 0, 2 runs: "
                        "10000000-10100000 raw 1048576 20000000-20009000 zero",
                        payload.size()));
  EXPECT_THAT(describe(record_of(Bytes(30))), HasSubstr("malformed: "));
}

/// A stream with one, as another build may have written it: what is on disks must be read for ever.
TEST(WirePacked, AnOldOneIsRead) {
  const auto lz4 = read_file(GODWIT_TEST_DATA "/wire/packed-lz4");
  const auto zstd = read_file(GODWIT_TEST_DATA "/wire/packed-zstd");
  ASSERT_TRUE(lz4.ok() && zstd.ok());
  for (const std::string& file : {lz4.value(), zstd.value()}) {
    const auto bytes = std::as_bytes(std::span(file));
    MemorySource source(bytes);
    RecordReader reader(source);
    ASSERT_TRUE(reader.start().ok());
    const Record record = reader.next().take();
    Unpacker unpacker;
    const Record within = unpacker.unpack(record).take();
    const Bytes batch = text_batch(2);
    EXPECT_TRUE(std::equal(within.payload.begin(), within.payload.end(), batch.begin(), batch.end()));
    EXPECT_EQ(reader.next().take().type, RecordType::kEnd);
  }
}

TEST(WirePacked, TheFuzzersCorpusReplays) {
  size_t inputs = 0;
  for (const auto& file : std::filesystem::directory_iterator(GODWIT_TEST_DATA "/../fuzz/corpus/packed")) {
    const std::string data = read_file(file.path().string()).take();
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size()), 0)
        << file.path();
    ++inputs;
  }
  EXPECT_GT(inputs, 5u);
}

}  // namespace
}  // namespace godwit::wire
