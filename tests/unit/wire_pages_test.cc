#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/wire/page_batch_reader.h"
#include "engine/wire/page_batch_writer.h"
#include "tests/unit/wire_memory.h"

namespace godwit::wire {
namespace {

using testing::HasSubstr;

PageBatchWriter new_batch() {
  return PageBatchWriter::create().take();
}

/// The payload of the record that `batch` would make.
Bytes payload_of(PageBatchWriter& batch) {
  const auto record = batch.finish().subspan(sizeof(RecordHeader));
  return {record.begin(), record.end()};
}

Record record_of(const Bytes& payload, RecordType type = RecordType::kPages) {
  return {type, 12, 0, payload};
}

TEST(WirePages, AdjacentZeroAndRawPagesMergeIntoRuns) {
  PageBatchWriter batch = new_batch();
  batch.begin(1);
  ASSERT_TRUE(batch.append_zero(0x1000, 1));
  ASSERT_TRUE(batch.append_zero(0x2000, 3));
  ASSERT_TRUE(batch.append_raw(0x5000, filled(kPageSize, 0xaa)));
  ASSERT_TRUE(batch.append_raw(0x6000, filled(2 * kPageSize, 0xbb)));
  ASSERT_TRUE(batch.append_raw(0x9000, filled(kPageSize, 0xcc)));
  ASSERT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, 0xa000, 1, filled(5, 1)));
  ASSERT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, 0xb000, 1, filled(6, 2)));
  EXPECT_EQ(batch.entries(), 5u);

  const Bytes payload = payload_of(batch);
  PageBatchReader reader = PageBatchReader::open(record_of(payload)).take();
  EXPECT_EQ(reader.process(), 1u);
  const PageEntry zero = *reader.next(), raw = *reader.next(), lone = *reader.next();
  EXPECT_EQ(zero.range(), range_of(0x1000, 0x5000));
  EXPECT_EQ(zero.encoding, PageEncoding::kZero);
  EXPECT_EQ(raw.range(), range_of(0x5000, 0x8000));
  EXPECT_EQ(raw.payload.size(), 3 * kPageSize);
  EXPECT_EQ(raw.payload[0], std::byte{0xaa});
  EXPECT_EQ(raw.payload[kPageSize], std::byte{0xbb});
  EXPECT_EQ(lone.payload[kPageSize - 1], std::byte{0xcc});
  EXPECT_EQ(reader.next()->payload.size(), 5u);
  EXPECT_EQ(reader.next()->payload[5], std::byte{2});
  EXPECT_FALSE(reader.next().has_value());
}

TEST(WirePages, APageReadIntoTheRoomIsNotCopied) {
  PageBatchWriter batch = new_batch();
  batch.begin(0);
  ASSERT_EQ(batch.room().size(), kBatchPayload);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(batch.room().data()) % kPageSize, 0u);
  std::fill_n(batch.room().begin(), kPageSize, std::byte{7});
  const std::byte* first = batch.room().data();
  ASSERT_TRUE(batch.commit_raw(0x1000, 1));
  EXPECT_EQ(batch.room().data(), first + kPageSize);
  std::fill_n(batch.room().begin(), 9, std::byte{8});
  ASSERT_TRUE(batch.commit_encoded(PageEncoding::kXbzrle, 0x4000, 1, 9));
  const Bytes payload = payload_of(batch);
  PageBatchReader reader = PageBatchReader::open(record_of(payload)).take();
  EXPECT_EQ(reader.next()->payload[5], std::byte{7});
  const PageEntry delta = *reader.next();
  EXPECT_EQ(delta.at, 0x4000u);
  EXPECT_EQ(delta.payload.size(), 9u);
}

TEST(WirePages, AFullBatchSaysSoAndStaysAsItWas) {
  PageBatchWriter batch = new_batch();
  batch.begin(0);
  ASSERT_TRUE(batch.append_raw(0x100000, filled(kBatchPayload - kPageSize, 1)));
  EXPECT_FALSE(batch.append_raw(0x900000, filled(2 * kPageSize, 1)));
  EXPECT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, 0x900000, 1, filled(kPageSize - 1, 1)));
  EXPECT_FALSE(batch.append_encoded(PageEncoding::kXbzrle, 0xa00000, 1, filled(2, 1)));
  EXPECT_EQ(batch.entries(), 2u);
  EXPECT_TRUE(batch.append_zero(0xb00000, 1)) << "zero pages need no payload room";
  EXPECT_TRUE(PageBatchReader::open(record_of(payload_of(batch))).ok());
}

TEST(WirePages, TheFullestTableFitsItsRecord) {
  PageBatchWriter batch = new_batch();
  batch.begin(0);
  for (uint64_t i = 0; i < kBatchEntries; ++i)
    ASSERT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, i * kPageSize, 1,
                                     filled(kBatchPayload / kBatchEntries, 1)));
  EXPECT_FALSE(batch.append_zero(0x7000000000, 1));
  EXPECT_EQ(batch.record_bytes(), sizeof(RecordHeader) + kBatchRecord);
  EXPECT_EQ(find_record(RecordType::kPages)->max_payload, kBatchRecord);
  const Bytes payload = payload_of(batch);
  EXPECT_EQ(PageBatchReader::open(record_of(payload)).take().entries(), kBatchEntries);
}

TEST(WirePages, ALongZeroRunIsSplitWhereItsCountEnds) {
  PageBatchWriter batch = new_batch();
  batch.begin(0);
  ASSERT_TRUE(batch.append_zero(0, kRunPages));
  ASSERT_TRUE(batch.append_zero(kRunPages * kPageSize, 1));
  EXPECT_EQ(batch.entries(), 2u);
}

TEST(WirePages, AnObjectIsNotBoundToUserSpace) {
  PageBatchWriter batch = new_batch();
  batch.begin_object(uint64_t{1} << 50);
  ASSERT_TRUE(batch.append_zero(kUserSpaceEnd, 4));
  const Bytes payload = payload_of(batch);
  PageBatchReader reader = PageBatchReader::open(record_of(payload, RecordType::kObjectPages)).take();
  EXPECT_EQ(reader.object(), uint64_t{1} << 50);
  EXPECT_EQ(reader.next()->at, kUserSpaceEnd);
  EXPECT_FALSE(PageBatchReader::open(record_of(payload, RecordType::kPages)).ok());
  EXPECT_FALSE(PageBatchReader::open(record_of(payload, RecordType::kState)).ok());
}

struct BadBatch {
  const char* name;
  PageBatchHeader header;
  PageTableEntry entry;
  size_t payload;
  const char* message;
};

PageTableEntry raw_at(uint64_t at, uint16_t pages = 1) {
  return {at, static_cast<uint32_t>(pages * kPageSize), pages, static_cast<uint8_t>(PageEncoding::kRaw), 0};
}
PageTableEntry coded(PageEncoding encoding, uint32_t length, uint16_t pages = 1) {
  return {uint64_t{0x1000}, length, pages, static_cast<uint8_t>(encoding), 0};
}
PageTableEntry with_flags(PageTableEntry entry) {
  entry.flags = 1;
  return entry;
}

const PageBatchHeader kOne{uint64_t{0}, uint32_t{1}, uint32_t{0}};

const BadBatch kBad[] = {
    {"Misaligned", kOne, raw_at(0x1001), kPageSize, "not page aligned"},
    {"NoPages", kOne, raw_at(0x1000, 0), 0, "no pages"},
    {"InTheKernel", kOne, raw_at(0xffff800000000000), kPageSize, "end beyond"},
    {"AtTheEnd", kOne, raw_at(kUserSpaceEnd), kPageSize, "end beyond"},
    {"AcrossTheEnd", kOne, raw_at(kUserSpaceEnd - kPageSize, 2), 2 * kPageSize, "end beyond"},
    {"AroundTheWorld", kOne, raw_at(0xfffffffffffff000, 2), 2 * kPageSize, "end beyond"},
    {"NoEncoding", kOne, coded(PageEncoding::kInvalid, 0), 0, "encoding 0"},
    {"UnknownEncoding", kOne, coded(static_cast<PageEncoding>(99), 5), 5, "encoding 99"},
    {"NextEncoding", kOne, coded(static_cast<PageEncoding>(4), 5), 5, "encoding 4"},
    {"UnknownFlags", kOne, with_flags(raw_at(0x1000)), kPageSize, "flags 0x1"},
    {"ZeroWithPayload", kOne, coded(PageEncoding::kZero, 1), 1, "1 bytes for 1 pages"},
    {"RawTooShort", kOne, coded(PageEncoding::kRaw, 4095), 4095, "4095 bytes for 1 pages"},
    {"XbzrleOfTwoPages", kOne, coded(PageEncoding::kXbzrle, 5, 2), 5, "for 2 pages"},
    {"XbzrleEmpty", kOne, coded(PageEncoding::kXbzrle, 0), 0, "0 bytes"},
    {"XbzrleThatGrew", kOne, coded(PageEncoding::kXbzrle, 4096), 4096, "4096 bytes"},
    {"PayloadMissing", kOne, raw_at(0x1000), kPageSize - 1, "adding up"},
    {"PayloadLeftOver", kOne, raw_at(0x1000), kPageSize + 1, "adding up"},
    {"NoEntries", {uint64_t{0}, uint32_t{0}, uint32_t{0}}, raw_at(0x1000), kPageSize, "table of 0"},
    {"TooManyEntries",
     {uint64_t{0}, uint32_t{0xffffffff}, uint32_t{0}},
     raw_at(0x1000),
     0,
     "table of 4294967295"},
    {"TableBeyondTheRecord", {uint64_t{0}, uint32_t{2}, uint32_t{0}}, raw_at(0x1000), 8, "table of 2"},
    {"ReservedSet", {uint64_t{0}, uint32_t{1}, uint32_t{1}}, raw_at(0x1000), kPageSize, "table of 1"},
    {"ProcessTooLarge",
     {uint64_t{1} << 32, uint32_t{1}, uint32_t{0}},
     raw_at(0x1000),
     kPageSize,
     "process index"},
};

class WireBadPages : public testing::TestWithParam<BadBatch> {};

TEST_P(WireBadPages, IsRefusedAndNamed) {
  const BadBatch& bad = GetParam();
  Bytes payload(sizeof bad.header + sizeof bad.entry + bad.payload);
  std::memcpy(payload.data(), &bad.header, sizeof bad.header);
  std::memcpy(payload.data() + sizeof bad.header, &bad.entry, sizeof bad.entry);
  const Result<PageBatchReader> batch = PageBatchReader::open(record_of(payload));
  ASSERT_FALSE(batch.ok());
  EXPECT_EQ(batch.error().subject, "record 12 (pages) of channel 0");
  EXPECT_THAT(batch.error().message(), HasSubstr(bad.message));
}

INSTANTIATE_TEST_SUITE_P(All, WireBadPages, testing::ValuesIn(kBad),
                         [](const auto& p) { return p.param.name; });

}  // namespace
}  // namespace godwit::wire
