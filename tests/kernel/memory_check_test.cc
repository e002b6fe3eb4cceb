// --verify: what was hashed at the source is held against what stands at the destination. Here both are one
// process, which changes in between.
#include "engine/migration/memory_check.h"

#include "engine/tracee/process.h"
#include "engine/wire/record_reader.h"
#include "tests/kernel/uffd_tracker_fixture.h"
#include "tests/unit/wire_memory.h"

namespace godwit::migration {
namespace {

using namespace uffd::test;  // NOLINT(google-build-using-namespace): the fixture that this test is made of
using testing::HasSubstr;
using uffd::WpTracker;

class MemoryCheckTest : public WpTrackerTest {
 protected:
  MemoryCheckTest()
      : target_({[](auto& c) {
                   c.a = map_apart(64);
                   for (const size_t page : {size_t{1}, size_t{2}, size_t{40}}) touch(c.a, page, 1);
                 },
                 [](auto& c) { touch(c.a, 2, 2); }, [](auto& c) { touch(c.a, 9, 3); },
                 [](auto& c) { *reinterpret_cast<volatile char*>(c.a + 10 * kPageSize) = 0; }}) {}

  void hash() {
    if (target_.control().a == 0) target_.run(0);
    WpTracker tracker = make(target_);
    auto process = tracee::Process::open(target_.pid());
    ASSERT_TRUE(process.ok());
    layout_ = process->layout().take();
    const Vma* area = find_vma(layout_, RemoteAddr(target_.control().a));
    ASSERT_NE(area, nullptr);
    layout_ = Layout{*area};
    const auto memory = tracee::Memory::open(target_.pid());
    ASSERT_TRUE(memory.ok());
    wire::MemorySink sink;
    wire::RecordWriter writer(sink, {});
    ASSERT_TRUE(writer.start().ok());
    const auto pages = send_hashes(memory.value(), tracker, layout_, left_out_, writer);
    ASSERT_TRUE(pages.ok() && writer.finish().ok());
    EXPECT_EQ(pages.value(), 3U);
    wire::MemorySource source(sink.data);
    wire::RecordReader reader(source);
    ASSERT_TRUE(reader.start().ok());
    for (auto record = reader.next(); record.ok() && record->type == wire::RecordType::kPageHashes;
         record = reader.next())
      ASSERT_TRUE(check_.expect(wire::parse<wire::PageHashes>(record.value()).take(), layout_).ok());
  }
  std::string compare() {
    const auto installer = uffd::PageInstaller::create(target_.pid());
    const Status same = check_.compare(target_.pid(), layout_, installer.value());
    return same.ok() ? "" : same.error().message();
  }
  std::string page(uint64_t number) { return fmt::format("{:#x}", target_.control().a + number * kPageSize); }

  Target target_;
  Layout layout_;
  std::vector<AddressRange> left_out_;
  MemoryCheck check_;
};

TEST_F(MemoryCheckTest, NothingIsComparedUnlessHashesCame) {
  target_.run(0);
  EXPECT_EQ(compare(), "");
}

TEST_F(MemoryCheckTest, TheSameMemoryPasses) {
  hash();
  EXPECT_EQ(compare(), "");
  target_.run(3);  // an empty page more, as a huge page brings
  EXPECT_EQ(compare(), "");
}

TEST_F(MemoryCheckTest, AChangedPageIsNamed) {
  hash();
  target_.run(1);
  EXPECT_THAT(compare(), HasSubstr("1 page: " + page(2) + " differs"));
}

TEST_F(MemoryCheckTest, WhatTheKernelWritesToIsLeftOut) {
  target_.run(0);
  const uint64_t written = target_.control().a + 2 * kPageSize;  // touch() writes 64 bytes
  left_out_ = {range_of(written, written + 64)};
  hash();
  target_.run(1);
  EXPECT_EQ(compare(), "");
}

TEST_F(MemoryCheckTest, APageTooManyIsNamed) {
  hash();
  target_.run(1);
  target_.run(2);
  EXPECT_THAT(compare(), HasSubstr("2 pages: " + page(2) + " differs, " + page(9) + " should be empty"));
}

}  // namespace
}  // namespace godwit::migration
