// Lanes side by side: whatever way the pages are dealt out, what arrives is what was there.
#include "engine/migration/lane_set.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <set>

#include "engine/wire/page_batch_reader.h"
#include "engine/wire/record_reader.h"
#include "tests/unit/wire_memory.h"

namespace godwit::migration {
namespace {

using Pass = LaneSet::Pass;

/// Refuses everything after so many bytes.
class ShortSink final : public ByteSink {
 public:
  explicit ShortSink(size_t room) : room_(room) {}
  Status write(std::span<const std::byte> bytes) override {
    if (bytes.size() > room_) return fail(ErrorKind::kPeerGone, "send", "a sink of the test");
    room_ -= bytes.size();
    return {};
  }
  Status flush() override { return {}; }

 private:
  size_t room_;
};

/// Memory of this process, every page with a number of its own.
class Area {
 public:
  explicit Area(size_t bytes)
      : bytes_(bytes),
        at_(static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    for (uint64_t i = 1; i <= bytes / kPageSize; i++) std::memcpy(at_ + (i - 1) * kPageSize, &i, sizeof i);
  }
  ~Area() { ::munmap(at_, bytes_); }
  [[nodiscard]] AddressRange range(size_t from, size_t to) const {
    return {RemoteAddr(reinterpret_cast<uint64_t>(at_) + from),
            RemoteAddr(reinterpret_cast<uint64_t>(at_) + to)};
  }
  [[nodiscard]] AddressRange all() const { return range(0, bytes_); }
  void unmap(size_t from, size_t to) { ::munmap(at_ + from, to - from); }

 private:
  size_t bytes_;
  std::byte* at_;
};

template <typename Sink>
struct Channel {
  explicit Channel(Sink made)
      : sink(std::move(made)), writer(sink, wire::test_header()), sender(writer, Compression::kNone, {}) {
    CHECK(writer.start().ok());
  }
  Sink sink;
  wire::RecordWriter writer;
  BatchSender sender;
};

template <typename Sink>
LaneSet make_lanes(std::vector<std::unique_ptr<Channel<Sink>>>& channels) {
  std::vector<std::unique_ptr<Lane>> lanes;
  for (auto& channel : channels) lanes.push_back(Lane::create(channel->sender, 0).take());
  return LaneSet(std::move(lanes));
}

/// Address to the lane it came over, of all whole pages; each is compared with what is there.
std::map<uint64_t, size_t> arrived(const std::vector<std::unique_ptr<Channel<wire::MemorySink>>>& channels) {
  std::map<uint64_t, size_t> pages;
  for (size_t lane = 0; lane < channels.size(); lane++) {
    EXPECT_TRUE(channels[lane]->writer.finish().ok());
    wire::MemorySource source(channels[lane]->sink.data);
    wire::RecordReader reader(source);
    EXPECT_TRUE(reader.start().ok());
    for (auto record = reader.next(); record.ok() && record->type == wire::RecordType::kPages;
         record = reader.next()) {
      auto batch = wire::PageBatchReader::open(*record);
      EXPECT_TRUE(batch.ok());
      while (const auto entry = batch->next()) {
        const auto* const there = reinterpret_cast<const void*>(entry->range().start.value());
        EXPECT_EQ(std::memcmp(entry->payload.data(), there, entry->payload.size()), 0);
        for (RemoteAddr at = entry->range().start; at < entry->range().end; at = at + kPageSize)
          EXPECT_TRUE(pages.emplace(at.value(), lane).second) << "twice";
      }
    }
  }
  return pages;
}

std::vector<std::unique_ptr<Channel<wire::MemorySink>>> make_channels(size_t count) {
  std::vector<std::unique_ptr<Channel<wire::MemorySink>>> channels;
  for (size_t i = 0; i < count; i++)
    channels.push_back(std::make_unique<Channel<wire::MemorySink>>(wire::MemorySink()));
  return channels;
}

class LaneSetTest : public testing::TestWithParam<std::tuple<size_t, Pass, size_t>> {};

TEST_P(LaneSetTest, EveryPageArrivesOnceAndABlockOverOneLane) {
  const auto [count, pass, step] = GetParam();
  Area area(64_MiB);
  auto channels = make_channels(count);
  LaneSet lanes = make_lanes(channels);
  const tracee::Memory memory = tracee::Memory::open(::getpid()).take();
  PageRuns runs;
  uint64_t pages = 0;
  for (size_t at = 0; at < 64_MiB; at += step * kPageSize, pages++)
    runs.push_back({area.range(at, at + kPageSize), true, true});
  ASSERT_TRUE(lanes.send(memory, runs, pass).ok());
  uint64_t told = 0;
  lanes.for_each_sent([&](AddressRange range) { told += range.pages(); });
  EXPECT_EQ(told, pages);
  const auto got = arrived(channels);
  EXPECT_EQ(got.size(), pages);
  std::map<uint64_t, std::set<size_t>> lanes_of;
  for (const auto& [at, lane] : got) lanes_of[at / 2_MiB].insert(lane);
  std::set<size_t> used;
  for (const auto& [block, set] : lanes_of) {
    EXPECT_EQ(set.size(), 1u);
    used.insert(*set.begin());
  }
  EXPECT_EQ(used.size(), count);
}
INSTANTIATE_TEST_SUITE_P(All, LaneSetTest,
                         testing::Combine(testing::Values(1, 2, 4, 7),
                                          testing::Values(Pass::kBulk, Pass::kRound, Pass::kLast),
                                          testing::Values(1, 3, 200)));

TEST(LaneSet, LeavesOutWhatVanishedAndNothingElse) {
  for (const Pass pass : {Pass::kBulk, Pass::kRound}) {
    Area area(16_MiB);
    auto channels = make_channels(2);
    LaneSet lanes = make_lanes(channels);
    const tracee::Memory memory = tracee::Memory::open(::getpid()).take();
    area.unmap(3_MiB + 5 * kPageSize, 3_MiB + 8 * kPageSize);
    ASSERT_TRUE(lanes.send(memory, {{area.all(), true, true}}, pass).ok());
    EXPECT_EQ(arrived(channels).size(), 16_MiB / kPageSize - 3);
  }
}

TEST(LaneSet, InTheFreezeNothingMayVanish) {
  Area area(16_MiB);
  auto channels = make_channels(2);
  LaneSet lanes = make_lanes(channels);
  const tracee::Memory memory = tracee::Memory::open(::getpid()).take();
  area.unmap(3_MiB, 4_MiB);
  const Status sent = lanes.send(memory, {{area.all(), true, true}}, Pass::kLast);
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().err, EFAULT);
}

TEST(LaneSet, TheErrorOfOneLaneEndsAll) {
  Area area(64_MiB);
  std::vector<std::unique_ptr<Channel<ShortSink>>> channels;
  for (const size_t room : {size_t{1} << 40, size_t{3} << 20, size_t{1} << 40})
    channels.push_back(std::make_unique<Channel<ShortSink>>(ShortSink(room)));
  LaneSet lanes = make_lanes(channels);
  const tracee::Memory memory = tracee::Memory::open(::getpid()).take();
  const Status sent = lanes.send(memory, {{area.all(), true, true}}, Pass::kBulk);
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().kind, ErrorKind::kPeerGone);
}

}  // namespace
}  // namespace godwit::migration
