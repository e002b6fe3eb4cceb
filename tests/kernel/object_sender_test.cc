// Objects of shared memory, carried: what arrives is what is there, and what cannot have changed is not read.
#include "engine/migration/object_sender.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "engine/wire/page_batch_reader.h"
#include "engine/wire/record_reader.h"
#include "tests/unit/wire_memory.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kId = 77;
constexpr size_t kSize = 20_MiB + 1000;  // several threads' shares, and an end within a page
constexpr size_t kHole = 6_MiB;          // from here to kHoleEnd
constexpr size_t kHoleEnd = 9_MiB;
constexpr size_t kWhole = kSize / kPageSize * kPageSize + kPageSize;
constexpr size_t kData = kWhole - (kHoleEnd - kHole);

class ObjectSenderTest : public testing::Test {
 protected:
  ObjectSenderTest() : writer_(sink_, wire::test_header()), batches_(writer_, Compression::kNone, {}) {}

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: BPF";
    fd_ = Fd(::memfd_create("carried", 0));
    ASSERT_EQ(::ftruncate(fd(), kSize), 0);
    std::string text(kSize, '\0');
    for (size_t i = 0; i < kSize; i += 8) std::memcpy(&text[i], &i, 8);
    ASSERT_EQ(::pwrite(fd(), text.data(), kSize, 0), static_cast<ssize_t>(kSize));
    punch(kHole, kHoleEnd - kHole);
    ASSERT_TRUE(writer_.start().ok());
    auto made = ObjectSender::create(writer_, batches_);
    ASSERT_TRUE(made.ok());
    sender_.emplace(made.take());
    announce(false);
    if (!sender_->blind().empty()) GTEST_SKIP() << sender_->blind();
  }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void punch(size_t at, size_t bytes) const {
    ASSERT_EQ(::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                          static_cast<off_t>(bytes)),
              0);
  }
  void announce(bool frozen) {
    state::ObjectSource source;
    source.info.set_id(kId);
    source.info.set_kind(wire::MemoryObject::MEMFD);
    source.info.set_size(static_cast<uint64_t>(::lseek(fd(), 0, SEEK_END)));
    source.fd = Fd(::open(fmt::format("/proc/self/fd/{}", fd()).c_str(), O_RDONLY | O_CLOEXEC));
    std::vector<state::ObjectSource> all;
    all.push_back(std::move(source));
    ASSERT_TRUE(sender_->announce(std::move(all), frozen).ok());
  }
  ObjectSender::Pass pass(bool frozen) {
    EXPECT_TRUE(sender_->look().ok());
    auto done = sender_->pass(frozen);
    EXPECT_TRUE(done.ok());
    return done.ok() ? *done : ObjectSender::Pass();
  }
  /// Rounds until nothing is left to read. (The first may begin within a tick of the last write.)
  void settle() {
    while (pass(false).bytes != 0) {
    }
  }
  /// What the peer would hold.
  [[nodiscard]] std::string arrived() const {
    std::string copy(kWhole, '\0');
    wire::MemorySource source(sink_.data);
    wire::RecordReader reader(source);
    EXPECT_TRUE(reader.start().ok());
    while (source.left() > 0) {
      auto record = reader.next();
      EXPECT_TRUE(record.ok());
      if (!record.ok()) break;
      if (record->type != wire::RecordType::kObjectPages) continue;
      auto batch = wire::PageBatchReader::open(*record);
      EXPECT_TRUE(batch.ok() && batch->object() == kId);
      while (const auto entry = batch->next()) {
        if (entry->payload.empty())
          std::fill_n(copy.begin() + static_cast<ptrdiff_t>(entry->at), entry->bytes(), '\0');
        else
          std::memcpy(copy.data() + entry->at, entry->payload.data(), entry->payload.size());
      }
    }
    return copy;
  }
  [[nodiscard]] std::string there() const {
    std::string text(kWhole, '\0');
    EXPECT_GE(::pread(fd(), text.data(), kWhole, 0), 0);
    return text;
  }
  void expect_arrived() const { EXPECT_TRUE(arrived() == there()); }

  wire::MemorySink sink_;
  wire::RecordWriter writer_;
  BatchSender batches_;
  Fd fd_;
  std::optional<ObjectSender> sender_;
};

TEST_F(ObjectSenderTest, WhatNobodyWritesToIsReadOnce) {
  const ObjectSender::Pass first = pass(false);
  EXPECT_EQ(first.bytes, kData);
  EXPECT_EQ(first.pages, kData / kPageSize);
  expect_arrived();
  settle();
  const ObjectSender::Pass last = pass(true);
  EXPECT_EQ(last.bytes, 0U);
  EXPECT_EQ(last.pages, 0U);
  expect_arrived();
}

TEST_F(ObjectSenderTest, WhatWasWrittenIsSent) {
  settle();
  for (const size_t at : {size_t{5}, kHole + 5, kSize - 1}) {
    ASSERT_EQ(::pwrite(fd(), "new", 1, static_cast<off_t>(at)), 1);
    const ObjectSender::Pass last = pass(true);
    EXPECT_GE(last.bytes, kData);
    EXPECT_EQ(last.pages, 1U);
    expect_arrived();
  }
}

TEST_F(ObjectSenderTest, WhatWasDiscardedBecomesZeros) {
  settle();
  for (const bool frozen : {false, true}) {
    punch(frozen ? 0 : 16_MiB, 3 * kPageSize);
    EXPECT_EQ(pass(frozen).pages, 3U);
    expect_arrived();
  }
}

TEST_F(ObjectSenderTest, WhatIsMappedIsReadEachTime) {
  void* at = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd(), 0);
  ASSERT_NE(at, MAP_FAILED);
  for (int i = 1; i < 4; ++i) {
    static_cast<char*>(at)[10_MiB] = static_cast<char>(i);
    EXPECT_EQ(pass(true).bytes, kData);
    expect_arrived();
  }
  ::munmap(at, kSize);
  settle();
  EXPECT_EQ(pass(true).bytes, 0U);
}

TEST_F(ObjectSenderTest, WhatIsDistrustedIsReadAgain) {
  settle();
  ASSERT_EQ(::pwrite(fd(), "new", 1, 0), 1);
  // The look is old enough to vouch, but somebody may still be filling pages.
  ::usleep(20'000);
  ASSERT_TRUE(sender_->look().ok());
  sender_->distrust();
  ASSERT_EQ(sender_->pass(false).value().bytes, kData);
  EXPECT_EQ(pass(false).bytes, kData);
  EXPECT_EQ(pass(false).bytes, 0U);
  // What had not changed stays as good as it was.
  ASSERT_TRUE(sender_->look().ok());
  sender_->distrust();
  EXPECT_EQ(sender_->pass(false).value().bytes, 0U);
  EXPECT_EQ(pass(true).bytes, 0U);
}

TEST_F(ObjectSenderTest, WhatShrankAndGrewHoldsNothingOld) {
  settle();
  ASSERT_EQ(::ftruncate(fd(), 4_MiB), 0);
  announce(false);
  pass(false);
  ASSERT_EQ(::ftruncate(fd(), kSize), 0);
  announce(true);
  pass(true);
  expect_arrived();
}

}  // namespace
}  // namespace godwit::migration
