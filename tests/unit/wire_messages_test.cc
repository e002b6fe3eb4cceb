#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/wire/layout_messages.h"
#include "engine/wire/printer.h"
#include "tests/unit/wire_memory.h"

namespace godwit::wire {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

Vma sample_vma() {
  Vma vma;
  vma.range = range_of(0x7f0000001000, 0x7f0000004000);
  vma.prot = 5;
  vma.shared = true;
  vma.kind = VmaKind::kFileShared;
  vma.offset = 0x2000;
  vma.device = uint64_t{8} << 32 | 1;
  vma.inode = 4711;
  vma.path = "/tmp/\xff not UTF-8";
  vma.flags = "rd ex sh mr mw me ms sd";
  vma.protection_key = 3;
  return vma;
}

TEST(WireMessages, AnAreaArrivesWithEveryField) {
  VmaMessage received;
  ASSERT_TRUE(received.ParseFromString(to_message(sample_vma()).SerializeAsString()));
  EXPECT_EQ(to_vma(received).take(), sample_vma());
}

TEST(WireMessages, AMalformedAreaIsNamed) {
  const auto broken = [](auto change) {
    VmaMessage message = to_message(sample_vma());
    change(message);
    const Result<Vma> vma = to_vma(message);
    EXPECT_FALSE(vma.ok()) << message.ShortDebugString();
    return vma.ok() ? "" : vma.error().message();
  };
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_start(0x7f0000001001); }),
              HasSubstr("7f0000001001-7f0000004000"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_end(m.start()); }), HasSubstr("range of addresses"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_end(0xfffffffffffff000); }), HasSubstr("range of addresses"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_huge_page(2_MiB); }), HasSubstr("pages of 2097152 bytes"))
      << "its ends are not on huge pages";
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_huge_page(4096); }), HasSubstr("pages of 4096 bytes"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_kind(0); }), HasSubstr("kind 0"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_kind(99); }), HasSubstr("kind 99"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_prot(8); }), HasSubstr("protection 0x8"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_protection_key(16); }), HasSubstr("key 16"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_offset(1); }), HasSubstr("offset"));
  EXPECT_THAT(broken([](VmaMessage& m) { m.set_path(std::string("a\0b", 3)); }), HasSubstr("NUL"));
}

TEST(WireMessages, TheVsyscallPageAloneMayLieAboveUserSpace) {
  RangeMessage message;
  message.set_start(0xffffffffff600000);
  message.set_end(0xffffffffff601000);
  EXPECT_TRUE(to_range(message).ok());
  message.set_end(0xffffffffff602000);
  EXPECT_FALSE(to_range(message).ok());
}

TEST(WireMessages, ALayoutIsSortedAndOverlapsAreRefused) {
  LayoutMessage message;
  Vma vma = sample_vma();
  *message.add_areas() = to_message(vma);
  vma.range = range_of(0x1000, 0x2000);
  *message.add_areas() = to_message(vma);
  const Layout layout = to_layout(message).take();
  ASSERT_EQ(layout.size(), 2u);
  EXPECT_EQ(layout[0].range, range_of(0x1000, 0x2000));
  vma.range = range_of(0x7f0000003000, 0x7f0000005000);
  *message.add_areas() = to_message(vma);
  EXPECT_THAT(to_layout(message).error().message(), HasSubstr("7f0000003000-7f0000005000"));
  *message.add_removed() = to_message(range_of(0x3000, 0x4000));
  *message.add_removed() = to_message(range_of(0x1000, 0x2000));
  EXPECT_THAT(to_ranges(message.removed()).take(),
              ElementsAre(range_of(0x1000, 0x2000), range_of(0x3000, 0x4000)));
}

TEST(WireMessages, AnErrorOfAnUnknownKindIsStillAnError) {
  Abort message = to_message(fail(ErrorKind::kTargetGone, "ptrace", "pid 4711"));
  EXPECT_EQ(to_error(message).kind, ErrorKind::kTargetGone);
  EXPECT_THAT(to_error(message).message(), HasSubstr("ptrace on pid 4711"));
  message.set_kind(200);
  EXPECT_EQ(to_error(message).kind, ErrorKind::kSystem);
  message.set_kind(0);
  EXPECT_EQ(to_error(message).kind, ErrorKind::kSystem);
}

TEST(WireMessages, AnErrorKeepsItsErrno) {
  Abort message = to_message(fail_errno("connect", "TCP socket 10.0.0.1:80", EADDRNOTAVAIL));
  EXPECT_EQ(to_error(message).err, EADDRNOTAVAIL);
  EXPECT_THAT(to_error(message).message(), HasSubstr("Cannot assign requested address"));
  message.set_error_number(4096);
  EXPECT_EQ(to_error(message).err, 0);
}

TEST(WireMessages, AnErrorAboutAFileWhoseNameIsNotUtf8Arrives) {
  const std::string path = "/tmp/\xff\xfe";
  Abort received;
  ASSERT_TRUE(
      received.ParseFromString(to_message(fail(ErrorKind::kRefused, "open", path)).SerializeAsString()));
  EXPECT_EQ(to_error(received).subject, path);
  Findings findings, got;
  findings.add_findings()->set_subject(path);
  ASSERT_TRUE(got.ParseFromString(findings.SerializeAsString()));
}

std::vector<std::string> print(const Bytes& stream, const PrintOptions& options, Status& status) {
  MemorySource source(stream);
  std::vector<std::string> lines;
  status = print_stream(
      source, [&](std::string_view line) { lines.emplace_back(line); }, options);
  return lines;
}

Bytes printable_stream() {
  return written([](RecordWriter& writer) {
    PageBatchWriter batch = PageBatchWriter::create().take();
    batch.begin(4);
    ASSERT_TRUE(batch.append_zero(0x1000, 2));
    ASSERT_TRUE(batch.append_raw(0x8000, filled(kPageSize, 1)));
    ASSERT_TRUE(writer.write_batch(batch).ok());
    RoomState state;
    state.set_room("timers");
    state.set_process(1);
    state.set_payload("12345");
    ASSERT_TRUE(writer.write_message(RecordType::kState, state).ok());
    ASSERT_TRUE(writer.finish().ok());
  });
}

TEST(WirePrinter, OneLineARecord) {
  Status status;
  const std::vector<std::string> lines = print(printable_stream(), {}, status);
  EXPECT_TRUE(status.ok());
  EXPECT_THAT(
      lines,
      ElementsAre("godwit stream, version 1.3, channel 2 of 4, session 000102030405060708090a0b0c0d0e0f",
                  "0 pages 4144 bytes: process 4, 2 runs: 1000-3000 zero 8000-9000 raw 4096",
                  "1 state 17 bytes: room timers, process 1: 5 bytes", "2 end 2 bytes: records: 2"));
}

TEST(WirePrinter, ARoomMayPrintItsOwnAndLongLinesAreCut) {
  PrintOptions options;
  options.print_room = [](const RoomState& state) { return "payload " + state.payload(); };
  Status status;
  EXPECT_THAT(print(printable_stream(), options, status)[2], HasSubstr("process 1: payload 12345"));
  options.max_line = 20;
  EXPECT_EQ(print(printable_stream(), options, status)[1], "0 pages 4144 bytes: ... (52 more)");
}

TEST(WirePrinter, ACutStreamShowsWhatCameBefore) {
  Bytes stream = printable_stream();
  stream.resize(stream.size() - 1);
  Status status;
  EXPECT_EQ(print(stream, {}, status).size(), 3u);
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().subject, StartsWith("record 2 (end) of channel 2"));
}

}  // namespace
}  // namespace godwit::wire
