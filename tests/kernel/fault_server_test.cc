// fault_server against real processes: what a program does to memory that is not there yet, and what comes
// meanwhile.
#include "uffd/fault_server.h"

#include <gmock/gmock.h>

#include <future>

#include "tests/kernel/uffd_target.h"

namespace godwit::uffd {
namespace {

using test::map_apart;
using test::pages_at;
using test::Target;

constexpr size_t kPages = 64;
constexpr size_t kMissing = 48;  // the first ones; the others hold nothing

char* at(uint64_t base, size_t page) {
  return reinterpret_cast<char*>(base + page * kPageSize);
}

/// What page `number` holds at the source.
std::vector<std::byte> contents(uint64_t number, size_t pages = 1) {
  std::vector<std::byte> bytes(pages * kPageSize);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number + i / kPageSize + 1);
  return bytes;
}

/// Control: a is the area; b says which page is the step's, c what it found.
std::vector<Target::Step> steps() {
  return {
      [](auto& c) { c.a = map_apart(kPages); },
      [](auto& c) { c.c = static_cast<unsigned char>(*at(c.a, c.b)); },  // 1: read
      [](auto& c) { ::madvise(at(c.a, c.b), 4 * kPageSize, MADV_DONTNEED); },
      [](auto& c) { ::munmap(at(c.a, c.b), 4 * kPageSize); },
      [](auto& c) {  // 4: move four pages
        void* to = reinterpret_cast<void*>(map_apart(8));
        c.d = reinterpret_cast<uint64_t>(
            ::mremap(at(c.a, c.b), 4 * kPageSize, 4 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, to));
      },
      [](auto& c) { c.c = static_cast<unsigned char>(*at(c.d, 2)); },  // 5: read where they stand now
      [](auto& c) {  // 6: a child reads, and tells by its exit
        const pid_t child = ::fork();
        if (child == 0) ::_exit(static_cast<unsigned char>(*at(c.a, c.b)));
        int status = 0;
        ::waitpid(child, &status, 0);
        c.c = static_cast<uint64_t>(WEXITSTATUS(status));
      },
      [](auto& c) {  // 7: write one word
        *at(c.a, c.b) = 99;
        c.c = static_cast<unsigned char>(at(c.a, c.b)[1]);
      },
      [](auto& c) {  // 8: lock the last pages, and let them grow elsewhere
        char* const last = at(c.a, kPages - 4);
        ::mlock(last, 4 * kPageSize);
        c.d = reinterpret_cast<uint64_t>(::mremap(last, 4 * kPageSize, 12 * kPageSize, MREMAP_MAYMOVE));
        c.c = c.d == ~uint64_t{0} ? 99 : static_cast<unsigned char>(*at(c.d, 11));
      },
      [](auto&) { ::execl("/bin/sleep", "sleep", "100", nullptr); },
  };
}

class FaultServerTest : public testing::Test {
 protected:
  void SetUp() override {
    target_.run(0);
    auto uffd = Uffd::adopt(target_.make_uffd(), kFaultServerFeatures);
    ASSERT_TRUE(uffd.ok()) << uffd.error().message();
    ASSERT_TRUE(uffd->register_range(pages_at(base(), 0, kPages), UFFDIO_REGISTER_MODE_MISSING).ok());
    PageSet missing;
    missing.insert(pages_at(base(), 0, kMissing));
    auto server = FaultServer::start(uffd.take(), std::move(missing), [this](RemoteAddr o) { asked(o); }, {});
    ASSERT_TRUE(server.ok()) << server.error().message();
    server_ = server.take();
  }
  /// On the server's thread: the test's "network" answers unless it is told not to.
  void asked(RemoteAddr origin) {
    const std::lock_guard lock(mutex_);
    asked_.push_back(number_of(origin));
    changed_.notify_all();
  }
  uint64_t wait_for_request() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return !asked_.empty(); }));
    if (asked_.empty()) return ~0ULL;
    const uint64_t number = asked_.front();
    asked_.erase(asked_.begin());
    return number;
  }
  void deliver(uint64_t first, size_t pages, bool urgent = true) {
    const Status put = server_->install(pages_at(base(), first, pages), contents(first, pages), urgent);
    ASSERT_TRUE(put.ok()) << put.error().message();
  }
  uint64_t base() { return target_.control().a; }
  uint64_t number_of(RemoteAddr origin) { return (origin.value() - base()) / kPageSize; }
  uint64_t run(int step, uint64_t page) {
    target_.control().b = page;
    target_.run(step);
    return target_.control().c;
  }
  /// The step waits for one page.
  uint64_t run_waiting(int step, uint64_t page, uint64_t origin) {
    target_.control().b = page;
    target_.begin(step);
    EXPECT_EQ(wait_for_request(), origin);
    deliver(origin, 1);
    target_.finish();
    return target_.control().c;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<uint64_t> asked_;
  Target target_{steps()};
  std::unique_ptr<FaultServer> server_;
};

enum Step { kRead = 1, kDiscard, kUnmap, kMove, kReadMoved, kForkAndRead, kWrite, kGrowLocked, kExec };

TEST_F(FaultServerTest, ATouchedPageIsAskedForAndCome) {
  EXPECT_EQ(run_waiting(kRead, 5, 5), 6U);
  EXPECT_EQ(run_waiting(kWrite, 6, 6), 7U);
  deliver(0, kMissing);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
  EXPECT_EQ(run(kRead, 6), 99U);  // what came again did not undo the write
  EXPECT_EQ(run(kRead, 7), 8U);
  EXPECT_EQ(server_->figures().faults, 2U);
}

TEST_F(FaultServerTest, WhatHoldsNothingIsZerosWithoutAsking) {
  EXPECT_EQ(run(kRead, kMissing + 1), 0U);
  EXPECT_EQ(run(kWrite, kMissing + 2), 0U);
  EXPECT_EQ(server_->figures().faults, 0U);
  EXPECT_GE(server_->figures().zero_faults, 2U);
}

TEST_F(FaultServerTest, WhatWasDiscardedIsZerosWhateverComesLater) {
  run(kDiscard, 8);
  deliver(0, 16, false);
  EXPECT_EQ(run(kRead, 9), 0U);
  EXPECT_EQ(run(kRead, 12), 13U);
  EXPECT_EQ(server_->figures().dropped, 4U);
}

TEST_F(FaultServerTest, WhatWasUnmappedIsDropped) {
  run(kUnmap, 8);
  deliver(0, kMissing, false);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

TEST_F(FaultServerTest, WhatMovedComesToWhereItStands) {
  run(kMove, 20);
  EXPECT_EQ(run_waiting(kReadMoved, 0, 22), 23U);
  deliver(0, kMissing, false);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

TEST_F(FaultServerTest, AChildLacksWhatItsParentLacked) {
  EXPECT_EQ(run_waiting(kForkAndRead, 30, 30), 31U);
  // To both of them.
  EXPECT_EQ(run(kRead, 30), 31U);
  deliver(0, kMissing, false);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

/// The kernel faults the new part in before it tells of the move, and refuses pages until it was told.
TEST_F(FaultServerTest, LockedMemoryGrows) {
  EXPECT_EQ(run(kGrowLocked, 0), 0U);
  deliver(0, kMissing, false);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

TEST_F(FaultServerTest, AnotherProgramLacksNothing) {
  target_.begin(kExec);
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

TEST_F(FaultServerTest, AProcessThatEndsLacksNothing) {
  target_.kill();
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
}

/// Everything comes while the program discards, moves and reads: no page shows what it may not.
TEST_F(FaultServerTest, PagesComeWhileTheProgramDiscards) {
  std::thread network([this] {
    for (uint64_t page = 0; page < kMissing; ++page) deliver(page, 1, page % 2 == 0);
  });
  for (uint64_t page = 0; page + 4 <= kMissing; page += 8) run(kDiscard, page);
  network.join();
  EXPECT_TRUE(server_->await_resident(std::chrono::seconds(20)));
  for (uint64_t page = 0; page + 4 <= kMissing; page += 8) {
    EXPECT_EQ(run(kRead, page + 1), 0U) << page;
    EXPECT_EQ(run(kRead, page + 5), page + 6) << page;
  }
}

}  // namespace
}  // namespace godwit::uffd
