// The worked example of docs/wire-format.md is what the code writes, byte for byte; and the fuzzer's corpus
// replays.
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/base/files.h"
#include "engine/wire/printer.h"
#include "engine/wire/record_reader.h"
#include "tests/unit/wire_memory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace godwit::wire {
namespace {

/// The bytes of the page's block "```hex": two digits each, up to the "|" of a line.
Bytes documented_example() {
  const std::string page = read_file(GODWIT_TEST_DATA "/../../docs/wire-format.md").take();
  const size_t begin = page.find("```hex\n") + 7;
  const std::string_view block = std::string_view(page).substr(begin, page.find("```", begin) - begin);
  Bytes bytes;
  for (const std::string_view line : split(block, '\n'))
    for (const std::string_view digits : split(line.substr(0, line.find('|')), ' '))
      bytes.push_back(static_cast<std::byte>(parse_number(digits, 16).value()));
  return bytes;
}

/// What that page describes in words.
Bytes written_example() {
  MemorySink sink;
  StreamHeader header;
  for (size_t i = 0; i < header.session.size(); ++i) header.session[i] = static_cast<std::byte>(i);
  RecordWriter writer(sink, header);
  RoundBegin round;
  round.set_round(1);
  round.set_expected_pages(4);
  PageBatchWriter batch = PageBatchWriter::create().take();
  batch.begin(0);
  EXPECT_TRUE(batch.append_zero(0x7f0000000000, 3));
  EXPECT_TRUE(batch.append_encoded(PageEncoding::kXbzrle, 0x7f0000008000, 1, filled(5, 0xab)));
  EXPECT_TRUE(writer.start().ok());
  EXPECT_TRUE(writer.write_message(RecordType::kRoundBegin, round).ok());
  EXPECT_TRUE(writer.write_batch(batch).ok());
  EXPECT_TRUE(writer.finish().ok());
  return sink.data;
}

std::string hex(const Bytes& bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i)
    text += fmt::format("{:02x}{}", static_cast<unsigned>(bytes[i]), i % 16 == 15 ? "\n" : " ");
  return text;
}

TEST(WireGolden, TheDocumentedExampleIsWhatIsWritten) {
  EXPECT_EQ(hex(written_example()), hex(documented_example()));
}

TEST(WireGolden, TheDocumentedExampleIsRead) {
  const Bytes example = documented_example();
  MemorySource source(example);
  std::string text;
  ASSERT_TRUE(print_stream(source, [&](std::string_view line) { text += fmt::format("{}\n", line); }).ok());
  EXPECT_EQ(text,
            "godwit stream, version 1.3, channel 0 of 1, session 000102030405060708090a0b0c0d0e0f\n"
            "0 round_begin 4 bytes: round: 1 expected_pages: 4\n"
            "1 pages 53 bytes: process 0, 2 runs: 7f0000000000-7f0000003000 zero "
            "7f0000008000-7f0000009000 xbzrle 5\n"
            "2 end 2 bytes: records: 2\n");
  EXPECT_EQ(source.left(), 0u);
}

TEST(WireGolden, EveryRecordOfTheTableIsDocumented) {
  const std::string page = read_file(GODWIT_TEST_DATA "/../../docs/wire-format.md").take();
  for (const RecordInfo& info : all_records()) {
    const size_t kib = info.max_payload >> 10;
    const std::string limit = info.prototype == nullptr ? "1.06 MiB"
                              : kib >= 1024             ? fmt::format("{} MiB", kib >> 10)
                                                        : fmt::format("{} KiB", kib);
    const std::string message = info.type == RecordType::kPacked ? "packed batch"
                                : info.prototype == nullptr      ? "page batch"
                                                                 : info.prototype().GetDescriptor()->name();
    const std::string row = fmt::format("| {} | {} | {} | {} | {} |", static_cast<uint32_t>(info.type),
                                        info.name, to_string(info.direction), limit, message);
    EXPECT_NE(page.find(row), std::string::npos) << row;
  }
}

TEST(WireGolden, TheFuzzersCorpusReplays) {
  size_t inputs = 0;
  for (const auto& file : std::filesystem::directory_iterator(GODWIT_TEST_DATA "/../fuzz/corpus/wire")) {
    const std::string data = read_file(file.path().string()).take();
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size()), 0)
        << file.path();
    ++inputs;
  }
  EXPECT_GT(inputs, 10u);
}

}  // namespace
}  // namespace godwit::wire
