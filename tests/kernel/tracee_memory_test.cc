#include "engine/tracee/memory.h"

#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/units.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::tracee {
namespace {

/// 4,096 pages, each filled with its number, mapped before the fork so that both sides know the address.
class MemoryTest : public ::testing::Test {
 protected:
  static constexpr size_t kPages = 4096;

  void SetUp() override {
    base_ = static_cast<std::byte*>(
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(base_, MAP_FAILED);
    target_ = std::make_unique<Target>([this](const auto& ready) {
      for (size_t i = 0; i < kPages; ++i) {
        const auto word = static_cast<uint32_t>(i);
        for (size_t at = 0; at < kPageSize; at += sizeof word) std::memcpy(page(i) + at, &word, sizeof word);
      }
      std::memcpy(page(9) + kPageSize - 5, "hello, world", 13);
      ::mprotect(page(100), 50 * kPageSize, PROT_NONE);
      ::mprotect(page(200), kPageSize, PROT_READ);
      ::munmap(page(300), kPageSize);
      ready();
      for (;;) ::pause();
    });
    auto memory = Memory::open(target_->pid());
    ASSERT_OK(memory);
    memory_ = std::make_unique<Memory>(memory.take());
  }
  void TearDown() override { ::munmap(base_, kPages * kPageSize); }

  [[nodiscard]] std::byte* page(size_t i) const { return base_ + i * kPageSize; }
  [[nodiscard]] AddressRange pages(size_t first, size_t count) const {
    const auto at = reinterpret_cast<uint64_t>(page(first));
    return range_of(at, at + count * kPageSize);
  }
  static void expect_page(const std::byte* bytes, size_t number) {
    uint32_t first = 0, last = 0;
    std::memcpy(&first, bytes + 64, sizeof first);
    std::memcpy(&last, bytes + kPageSize - 64, sizeof last);
    EXPECT_EQ(first, number);
    EXPECT_EQ(last, number);
  }

  std::byte* base_ = nullptr;
  std::unique_ptr<Target> target_;
  std::unique_ptr<Memory> memory_;
};

TEST_F(MemoryTest, ReadsThousandsOfScatteredRanges) {
  std::vector<AddressRange> ranges;
  std::vector<size_t> numbers;
  for (size_t i = 400; i < kPages; i += 2) {
    ranges.push_back(pages(i, 1));
    numbers.push_back(i);
  }
  ranges.insert(ranges.begin() + 7, pages(500, 0));  // an empty one
  std::vector<std::byte> out(numbers.size() * kPageSize);
  ASSERT_OK(memory_->read_ranges(ranges, out));
  for (size_t i = 0; i < numbers.size(); ++i) expect_page(out.data() + i * kPageSize, numbers[i]);
}

TEST_F(MemoryTest, ReadsThroughPagesThatTheirProtectionHides) {
  const AddressRange ranges[] = {pages(90, 30), pages(120, 1), pages(10, 1), pages(140, 60)};
  std::vector<std::byte> out(92 * kPageSize);
  ASSERT_OK(memory_->read_ranges(ranges, out));
  for (size_t i = 0; i < 30; ++i) expect_page(out.data() + i * kPageSize, 90 + i);
  expect_page(out.data() + 30 * kPageSize, 120);
  expect_page(out.data() + 31 * kPageSize, 10);
  for (size_t i = 0; i < 60; ++i) expect_page(out.data() + (32 + i) * kPageSize, 140 + i);
}

TEST_F(MemoryTest, NamesTheFirstRangeThatFailed) {
  const AddressRange ranges[] = {pages(1, 1), pages(300, 1), pages(2, 1)};
  std::vector<std::byte> out(3 * kPageSize);
  const Status status = memory_->read_ranges(ranges, out);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().err, EFAULT);
  EXPECT_NE(status.error().subject.find(fmt::format("{:#x}", ranges[1].start.value())), std::string::npos)
      << status.error().message();
  EXPECT_EQ(memory_->read_ranges(ranges, std::span(out).first(10)).error().kind, ErrorKind::kBug);
}

TEST_F(MemoryTest, WritesAlsoWhereTheProcessMayNot) {
  for (const size_t number : {size_t{20}, size_t{100}, size_t{200}}) {
    const RemoteAddr at = pages(number, 1).start;
    ASSERT_OK(memory_->write(at + 8, std::as_bytes(std::span("abcdefg", 8))));
    const auto text = memory_->read_string(at + 8, 100);
    ASSERT_OK(text);
    EXPECT_EQ(text.value(), "abcdefg");
  }
  EXPECT_EQ(memory_->write(pages(300, 1).start, std::as_bytes(std::span("x", 1))).error().err, EFAULT);
}

TEST_F(MemoryTest, ReadsStringsAcrossPages) {
  const RemoteAddr at = pages(10, 1).start;
  const auto text = memory_->read_string(RemoteAddr(at.value() - 5), 100);
  ASSERT_OK(text);
  EXPECT_EQ(text.value(), "hello, world");
  EXPECT_EQ(memory_->read_string(RemoteAddr(at.value() - 5), 12).error().kind, ErrorKind::kCorrupt);
  const auto value = memory_->read_value<uint32_t>(pages(77, 1).start);
  ASSERT_OK(value);
  EXPECT_EQ(value.value(), 77U);
}

TEST_F(MemoryTest, ADeadProcessIsGone) {
  const RemoteAddr at = pages(20, 1).start;
  const RemoteAddr hidden = pages(100, 1).start;
  target_.reset();
  std::byte byte{};
  EXPECT_EQ(memory_->read(at, {&byte, 1}).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(memory_->read(hidden, {&byte, 1}).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(memory_->write(at, {&byte, 1}).error().kind, ErrorKind::kTargetGone);
}

TEST_F(MemoryTest, ProcessTellsOfTheTarget) {
  const auto process = Process::open(target_->pid());
  ASSERT_OK(process);
  const auto layout = process.value().layout();
  ASSERT_OK(layout);
  const Vma* hidden = find_vma(layout.value(), pages(100, 1).start);
  ASSERT_NE(hidden, nullptr);
  EXPECT_EQ(hidden->range, pages(100, 50));
  EXPECT_EQ(hidden->prot, PROT_NONE);
  EXPECT_EQ(find_vma(layout.value(), pages(300, 1).start), nullptr);
  const auto detailed = process.value().detailed_layout();
  ASSERT_OK(detailed);
  ASSERT_EQ(detailed.value().size(), layout.value().size());
  for (size_t i = 0; i < layout.value().size(); ++i) {
    EXPECT_EQ(detailed.value()[i].range, layout.value()[i].range);
    EXPECT_FALSE(detailed.value()[i].flags.empty()) << detailed.value()[i].path;
  }
  const auto stat = process.value().stat();
  ASSERT_OK(stat);
  EXPECT_EQ(stat.value().ppid, ::getpid());
  const auto mine = parse_layout("");
  EXPECT_TRUE(mine.value().empty());
  EXPECT_EQ(Process::open(::getpid()).error().kind, ErrorKind::kRefused);
  EXPECT_EQ(Process::open(2).error().kind, ErrorKind::kRefused) << "kthreadd";
  EXPECT_EQ(Process::open(0x3fffff).error().kind, ErrorKind::kTargetGone);
}

}  // namespace
}  // namespace godwit::tracee
