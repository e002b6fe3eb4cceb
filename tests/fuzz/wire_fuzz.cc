// Everything a peer or an image can make the wire read. The first byte chooses: 0, the rest is a stream as it
// is; else it is a list of {type, length (2 bytes), payload}, framed here with good checksums, so that the
// fuzzer gets past them to the payloads. The corpus in tests/fuzz/corpus/wire replays in the unit tests.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/wire/layout_messages.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_reader.h"
#include "engine/wire/printer.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/record_writer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;
using namespace godwit::wire;

class Source final : public ByteSource {
 public:
  explicit Source(std::span<const std::byte> bytes) : bytes_(bytes) {}
  Status read(std::span<std::byte> into) override {
    if (into.size() > bytes_.size()) return fail(ErrorKind::kPeerGone, "receiving", "input");
    if (!into.empty()) std::memcpy(into.data(), bytes_.data(), into.size());
    bytes_ = bytes_.subspan(into.size());
    return {};
  }

 private:
  std::span<const std::byte> bytes_;
};

class Sink final : public ByteSink {
 public:
  Status write(std::span<const std::byte> bytes) override {
    data.insert(data.end(), bytes.begin(), bytes.end());
    return {};
  }
  Status flush() override { return {}; }
  std::vector<std::byte> data;
};

void take_apart(const Record& record) {
  if (record.type == RecordType::kLayout) {
    Result<LayoutMessage> message = parse<LayoutMessage>(record);
    if (!message.ok()) return;
    (void)to_layout(message.value());
    (void)to_ranges(message->removed());
  } else if (record.type == RecordType::kAbort) {
    const Result<Abort> message = parse<Abort>(record);
    if (message.ok()) (void)to_error(message.value()).message();
  } else if (record.type == RecordType::kPages || record.type == RecordType::kObjectPages) {
    Result<PageBatchReader> batch = PageBatchReader::open(record);
    if (!batch.ok()) return;
    uint64_t sum = 0;  // every byte handed out must be there to read
    while (const auto entry = batch->next())
      for (const std::byte b : entry->payload) sum += static_cast<uint64_t>(b);
    volatile uint64_t seen = sum;
    (void)seen;
  } else if (record.type == RecordType::kPacked) {
    Unpacker unpacker;
    const Result<Record> within = unpacker.unpack(record);
    if (within.ok()) take_apart(within.value());
  }
}

void read_all(std::span<const std::byte> stream) {
  Source source(stream);
  RecordReader reader(source);
  if (!reader.start().ok()) return;
  while (true) {
    const Result<Record> record = reader.next();
    if (!record.ok()) break;
    take_apart(record.value());
  }
  Source again(stream);
  size_t printed = 0;
  (void)print_stream(again, [&](std::string_view line) { printed += line.size(); });
}

void frame_and_read(std::span<const std::byte> input) {
  Sink sink;
  RecordWriter writer(sink, StreamHeader{});
  (void)writer.start();
  while (input.size() >= 3) {
    const auto type = static_cast<RecordType>(input[0]);
    const size_t length = std::min<size_t>(load<Le16>(&input[1]), input.size() - 3);
    const std::span<const std::byte> payload = input.subspan(3, length);
    if (find_record(type) != nullptr)
      (void)writer.write(type, payload);
    else
      (void)writer.write_optional(static_cast<uint32_t>(type), payload);
    input = input.subspan(3 + length);
  }
  read_all(sink.data);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto input = std::as_bytes(std::span(data, size)).subspan(1);
  if (data[0] == 0)
    read_all(input);
  else
    frame_and_read(input);
  return 0;
}
