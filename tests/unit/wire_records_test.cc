// Whatever happens to a stream on its way - cut, flipped, reordered, mixed up - ends in an error that names
// the record.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/units.h"
#include "engine/wire/layout_messages.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_reader.h"
#include "engine/wire/record_reader.h"
#include "tests/unit/wire_memory.h"

namespace godwit::wire {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using testing::HasSubstr;

void fill(Message& message, int depth = 0);

/// One value that is not the default for any type of field.
void fill_field(Message& message, const FieldDescriptor* field, int depth) {
  const auto* r = message.GetReflection();
  const bool many = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      many ? r->AddInt32(&message, field, -7) : r->SetInt32(&message, field, -7);
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      many ? r->AddInt64(&message, field, -8) : r->SetInt64(&message, field, -8);
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      many ? r->AddUInt32(&message, field, 9) : r->SetUInt32(&message, field, 9);
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      many ? r->AddUInt64(&message, field, 1ull << 40) : r->SetUInt64(&message, field, 1ull << 40);
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      many ? r->AddBool(&message, field, true) : r->SetBool(&message, field, true);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      many ? r->AddEnumValue(&message, field, 1) : r->SetEnumValue(&message, field, 1);
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      many ? r->AddString(&message, field, "text") : r->SetString(&message, field, "text");
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (depth < 3)
        fill(many ? *r->AddMessage(&message, field) : *r->MutableMessage(&message, field), depth + 1);
      break;
    default:
      FAIL() << field->full_name() << " has a type that no message of the wire should have";
  }
}

void fill(Message& message, int depth) {
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i)
    fill_field(message, message.GetDescriptor()->field(i), depth);
}

PageBatchWriter sample_batch(RecordType type) {
  PageBatchWriter batch = PageBatchWriter::create().take();
  if (type == RecordType::kPages)
    batch.begin(3);
  else
    batch.begin_object(9);
  EXPECT_TRUE(batch.append_zero(0x10000, 5));
  EXPECT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, 0x40000, 1, filled(6, 0x33)));
  return batch;
}

void write_sample(RecordWriter& writer, const RecordInfo& info) {
  if (info.type == RecordType::kPacked) {
    PageBatchWriter batch = sample_batch(RecordType::kObjectPages);
    ASSERT_TRUE(batch.append_raw(0x50000, filled(kPageSize, 0x44)));
    Packer packer;
    const auto record = batch.finish().subspan(sizeof(RecordHeader));
    ASSERT_TRUE(writer.write(info.type, packer.pack(Packing::kLz4, batch.type(), record)).ok());
    return;
  }
  if (info.prototype == nullptr) {
    PageBatchWriter batch = sample_batch(info.type);
    ASSERT_TRUE(writer.write_batch(batch).ok());
    return;
  }
  const std::unique_ptr<Message> message(info.prototype().New());
  fill(*message);
  ASSERT_TRUE(writer.write_message(info.type, *message).ok());
}

/// One record of every type, and where each begins.
struct Sample {
  Bytes stream;
  std::vector<size_t> starts;

  Sample() {
    MemorySink sink;
    RecordWriter writer(sink, test_header());
    EXPECT_TRUE(writer.start().ok());
    for (const RecordInfo& info : all_records()) {
      starts.push_back(sink.data.size());
      write_sample(writer, info);
    }
    starts.push_back(sink.data.size());
    stream = std::move(sink.data);
  }
  /// What an error about byte `at` must name.
  [[nodiscard]] std::string name_at(size_t at) const {
    if (at < starts.front()) return "stream header";
    const auto next = std::upper_bound(starts.begin(), starts.end(), at);
    return fmt::format("record {}", next - starts.begin() - 1);
  }
};

/// Reads all that can be read, taking every record apart, and returns the error that ends it.
Error read_to_error(std::span<const std::byte> stream) {
  MemorySource source(stream);
  RecordReader reader(source);
  Result<StreamHeader> header = reader.start();
  if (!header.ok()) return header.take_error();
  while (true) {
    Result<Record> record = reader.next();
    if (!record.ok()) return record.take_error();
  }
}

void expect_names(const Error& error, const std::string& record) {
  EXPECT_TRUE(error.subject == record || error.subject.starts_with(record + " ")) << error.message();
}

TEST(WireRecords, EveryTypeArrivesAsItWasSent) {
  const Sample sample;
  MemorySource source(sample.stream);
  RecordReader reader(source);
  ASSERT_EQ(reader.start().take(), test_header());
  uint32_t sequence = 0;
  for (const RecordInfo& info : all_records()) {
    const Record record = reader.next().take();
    EXPECT_EQ(record.type, info.type);
    EXPECT_EQ(record.sequence, sequence++);
    if (info.prototype == nullptr) continue;
    const std::unique_ptr<Message> sent(info.prototype().New()), got(info.prototype().New());
    fill(*sent);
    ASSERT_TRUE(parse_into(record, *got).ok());
    EXPECT_EQ(got->DebugString(), sent->DebugString());
  }
  EXPECT_EQ(source.left(), 0u);
}

TEST(WireRecords, TheTableIsWhole) {
  for (const RecordInfo& info : all_records()) {
    EXPECT_FALSE(info.name.empty());
    EXPECT_GT(info.max_payload, 0u) << info.name;
    EXPECT_NE(info.direction, Direction::kInvalid) << info.name;
    EXPECT_EQ(find_record(info.type), &info);
  }
  EXPECT_EQ(find_record(RecordType::kInvalid), nullptr);
  EXPECT_EQ(record_name(static_cast<RecordType>(4711)), "type 4711");
}

TEST(WireRecords, EveryFlippedBitIsFoundAndItsRecordNamed) {
  const Sample sample;
  Bytes stream = sample.stream;
  for (size_t bit = 0; bit < stream.size() * 8; ++bit) {
    const auto mask = static_cast<std::byte>(1u << (bit % 8));
    stream[bit / 8] ^= mask;
    const Error error = read_to_error(stream);
    stream[bit / 8] ^= mask;
    EXPECT_TRUE(error.kind == ErrorKind::kCorrupt || error.kind == ErrorKind::kPeerGone) << error.message();
    expect_names(error, sample.name_at(bit / 8));
  }
}

TEST(WireRecords, EveryCutIsFoundAndItsRecordNamed) {
  const Sample sample;
  for (size_t size = 0; size < sample.stream.size(); ++size) {
    const Error error = read_to_error(std::span(sample.stream).first(size));
    EXPECT_EQ(error.kind, ErrorKind::kPeerGone) << error.message();
    expect_names(error, sample.name_at(size));
    EXPECT_THAT(error.subject, HasSubstr("memory"));
  }
}

template <typename T>
Status forget(Result<T> result) {
  return result.ok() ? Status() : result.take_error();
}

TEST(WireRecords, AShortPayloadWithAGoodChecksumIsNamedToo) {
  for (const RecordInfo& info : all_records()) {
    Bytes whole = written([&](RecordWriter& writer) { write_sample(writer, info); });
    const Bytes payload(whole.begin() + kStreamHeaderSize + sizeof(RecordHeader), whole.end());
    for (size_t size = 0; size < payload.size(); ++size) {
      const Bytes cut = written([&](RecordWriter& writer) {
        ASSERT_TRUE(writer.write(info.type, std::span(payload).first(size)).ok());
      });
      MemorySource source(cut);
      RecordReader reader(source);
      ASSERT_TRUE(reader.start().ok());
      const Record record = reader.next().take();
      if (info.prototype == nullptr) {
        const bool packed = info.type == RecordType::kPacked;
        Status read = packed ? forget(Unpacker().unpack(record)) : forget(PageBatchReader::open(record));
        ASSERT_FALSE(read.ok());
        expect_names(read.error(), "record 0");
        continue;
      }
      const std::unique_ptr<Message> message(info.prototype().New());
      // A message cut between two fields is a shorter message; anywhere else it must not parse.
      if (const Status parsed = parse_into(record, *message); !parsed.ok())
        expect_names(parsed.error(), "record 0");
      else
        EXPECT_EQ(message->ByteSizeLong(), size);
    }
  }
}

TEST(WireRecords, AnOversizedRecordIsRefusedByBothSides) {
  for (const RecordInfo& info : all_records()) {
    Bytes stream = written([](RecordWriter&) {});
    RecordHeader header{static_cast<uint32_t>(info.type), info.max_payload + 1, uint32_t{0}, uint32_t{0}};
    const auto bytes = std::as_bytes(std::span(&header, 1));
    stream.insert(stream.end(), bytes.begin(), bytes.end());
    const Error error = read_to_error(stream);
    EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
    EXPECT_EQ(error.subject, fmt::format("record 0 ({}) of channel 2", info.name));

    if (info.max_payload > 2_MiB) continue;
    written([&](RecordWriter& writer) {
      const Status status = writer.write(info.type, filled(info.max_payload + 1, 0));
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().kind, ErrorKind::kUnsupported);
      EXPECT_TRUE(writer.write(info.type, filled(info.max_payload, 0)).ok());
    });
  }
}

/// Three barriers, as the bytes of the stream header and of each record.
std::vector<Bytes> three_records(StreamHeader header = test_header()) {
  MemorySink sink;
  RecordWriter writer(sink, header);
  std::vector<Bytes> parts;
  EXPECT_TRUE(writer.start().ok());
  for (uint32_t id = 1; id <= 4; ++id) {
    parts.push_back(std::exchange(sink.data, {}));
    Barrier barrier;
    barrier.set_id(id);
    EXPECT_TRUE(writer.write_message(RecordType::kBarrier, barrier).ok());
  }
  return parts;
}

Error read_parts(const std::vector<Bytes>& parts, std::initializer_list<size_t> order) {
  Bytes stream;
  for (const size_t i : order) stream.insert(stream.end(), parts[i].begin(), parts[i].end());
  return read_to_error(stream);
}

TEST(WireRecords, LostRepeatedAndReorderedRecordsAreNoticed) {
  const std::vector<Bytes> parts = three_records();
  EXPECT_EQ(read_parts(parts, {0, 1, 2, 3}).kind, ErrorKind::kPeerGone);
  for (const auto& order : {std::initializer_list<size_t>{0, 1, 3}, {0, 1, 1, 2}, {0, 1, 3, 2}}) {
    const Error error = read_parts(parts, order);
    EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
    EXPECT_EQ(error.subject, "record 1 (barrier) of channel 2");
    EXPECT_THAT(error.remedy, HasSubstr("reordered"));
  }
}

TEST(WireRecords, ARecordOfAnotherChannelOrSessionIsNoticed) {
  const std::vector<Bytes> parts = three_records();
  StreamHeader other_channel = test_header(), other_session = test_header();
  other_channel.channel = 3;
  other_session.session[5] = std::byte{0xff};
  for (const StreamHeader& header : {other_channel, other_session}) {
    std::vector<Bytes> mixed = three_records(header);
    mixed[0] = parts[0];
    EXPECT_EQ(read_parts(mixed, {0, 1}).kind, ErrorKind::kCorrupt);
  }
}

TEST(WireRecords, AnUnknownOptionalRecordIsSkippedAndAMandatoryOneRefused) {
  Barrier barrier;
  Bytes stream = written([&](RecordWriter& writer) {
    ASSERT_TRUE(writer.write_optional(4711, filled(100, 1)).ok());
    ASSERT_TRUE(writer.write_message(RecordType::kBarrier, barrier).ok());
  });
  MemorySource source(stream);
  RecordReader reader(source);
  ASSERT_TRUE(reader.start().ok());
  EXPECT_EQ(reader.next().take().sequence, 1u);
  EXPECT_EQ(reader.skipped(), 1u);

  RecordHeader header{uint32_t{4711}, uint32_t{0}, uint32_t{0}, uint32_t{0}};
  header.checksum = record_checksum(checksum_seed(test_header()), header, {});
  stream = written([](RecordWriter&) {});
  const auto bytes = std::as_bytes(std::span(&header, 1));
  stream.insert(stream.end(), bytes.begin(), bytes.end());
  const Error error = read_to_error(stream);
  EXPECT_EQ(error.kind, ErrorKind::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("record type 4711"));
  EXPECT_THAT(error.message(), HasSubstr("record 0 (type 4711) of channel 2"));
}

TEST(WireRecords, AnotherMajorVersionIsRefusedByName) {
  StreamHeader header = test_header();
  header.major = 7;
  header.minor = 3;
  const Result<StreamHeader> future = decode(encode(header));
  ASSERT_FALSE(future.ok());
  EXPECT_EQ(future.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(future.error().message(), HasSubstr("7.3"));
  EXPECT_THAT(future.error().message(), HasSubstr(fmt::format("{}.{}", kWireMajor, kWireMinor)));
  header.major = kWireMajor;
  EXPECT_TRUE(decode(encode(header)).ok()) << "a newer minor is read";
  header.channel = header.channels;
  EXPECT_EQ(decode(encode(header)).error().kind, ErrorKind::kCorrupt);
}

TEST(WireRecords, AStrangerIsToldApart) {
  const std::string_view http = "GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n";
  const Error error = read_to_error(std::as_bytes(std::span(http)));
  EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
  EXPECT_THAT(error.message(), HasSubstr("no godwit stream"));
}

TEST(WireRecords, ASmallRecordLeavesInOneWrite) {
  MemorySink sink;
  RecordWriter writer(sink, test_header());
  Barrier barrier;
  ASSERT_TRUE(writer.write_message(RecordType::kBarrier, barrier).ok());
  ASSERT_TRUE(writer.write(RecordType::kPages, filled(100, 1)).ok());
  EXPECT_EQ(sink.writes, 2);
  PageBatchWriter batch = PageBatchWriter::create().take();
  batch.begin(0);
  ASSERT_TRUE(batch.append_raw(0x1000, filled(256 * kPageSize, 1)));
  ASSERT_TRUE(writer.write_batch(batch).ok());
  EXPECT_EQ(sink.writes, 3) << "a batch of any size, too";
  EXPECT_TRUE(batch.empty());
}

TEST(WireRecords, FinishCountsTheRecords) {
  MemorySink sink;
  RecordWriter writer(sink, test_header());
  Barrier barrier;
  ASSERT_TRUE(writer.start().ok());
  ASSERT_TRUE(writer.write_message(RecordType::kBarrier, barrier).ok());
  ASSERT_TRUE(writer.finish().ok());
  EXPECT_EQ(sink.flushes, 1);
  MemorySource source(sink.data);
  RecordReader reader(source);
  ASSERT_TRUE(reader.start().ok());
  ASSERT_TRUE(expect(reader, RecordType::kBarrier).ok());
  EXPECT_EQ(parse<End>(expect(reader, RecordType::kEnd).take()).take().records(), 1u);
}

TEST(WireRecords, ExpectTurnsAnAbortIntoThePeersError) {
  const Bytes stream = written([](RecordWriter& writer) {
    const Error error = fail(ErrorKind::kRefused, "check", "fd 7 (socket:[1])", "close it");
    ASSERT_TRUE(writer.write_message(RecordType::kAbort, to_message(error)).ok());
    ASSERT_TRUE(writer.write_message(RecordType::kBarrier, Barrier()).ok());
  });
  MemorySource source(stream);
  RecordReader reader(source);
  ASSERT_TRUE(reader.start().ok());
  const Error aborted = expect(reader, RecordType::kCommit).take_error();
  EXPECT_EQ(aborted.kind, ErrorKind::kRefused);
  EXPECT_EQ(aborted.subject, "fd 7 (socket:[1])");
  EXPECT_EQ(aborted.remedy, "close it");
  const Error other = expect(reader, RecordType::kCommit).take_error();
  EXPECT_EQ(other.kind, ErrorKind::kCorrupt);
  EXPECT_EQ(other.subject, "record 1 (barrier) of channel 2");
}

TEST(WireRecords, ParsingTheWrongMessageIsAnError) {
  const Bytes stream = written(
      [](RecordWriter& writer) { ASSERT_TRUE(writer.write_message(RecordType::kBarrier, Barrier()).ok()); });
  MemorySource source(stream);
  RecordReader reader(source);
  ASSERT_TRUE(reader.start().ok());
  const Result<Commit> commit = parse<Commit>(reader.next().take());
  ASSERT_FALSE(commit.ok());
  EXPECT_EQ(commit.error().kind, ErrorKind::kCorrupt);
}

}  // namespace
}  // namespace godwit::wire
