// What is special about synchronous write-protection: threads of the target wait for our handler. None may
// wait for ever, whatever becomes of the engine or of the memory.
#include <thread>

#include "engine/base/files.h"
#include "engine/tracee/frozen.h"
#include "tests/kernel/uffd_tracker_fixture.h"
#include "uffd/page_scan.h"

namespace godwit::uffd {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): the fixture
using testing::ElementsAre;
using testing::IsEmpty;

constexpr size_t kPages = 2048;

class SyncTrackerTest : public TrackerTest {
 protected:
  void SetUp() override { skip_without(Kind::kUffdSync); }
  static std::unique_ptr<SyncTracker> make(Target& target) {
    auto tracker = SyncTracker::create(target.pid(), target.make_uffd());
    EXPECT_TRUE(tracker.ok()) << (tracker.ok() ? "" : tracker.error().message());
    return tracker.take();
  }
};

void map_all(Target::Control& c) {
  c.a = map_apart(kPages);
  for (size_t i = 0; i < kPages; i++) touch(c.a, i, 1);
}

struct Random {
  uint64_t seed;
  uint64_t next() {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return seed >> 33;
  }
};

/// By the program and by the kernel, on two threads, until c.b; c.c counts.
void write_everywhere(Target::Control& c) {
  const Fd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const auto write = [&](uint64_t seed, bool by_kernel) {
    for (Random random{seed}; c.b == 0; c.c++) {
      const uint64_t at = c.a + random.next() % kPages * kPageSize + 8 * (random.next() & 255);
      if (!by_kernel)
        *reinterpret_cast<volatile uint64_t*>(at) = random.seed;
      else if (::read(zero.get(), reinterpret_cast<void*>(at), 2000) <= 0)
        ::_exit(3);
    }
  };
  std::thread other(write, 2, true);
  write(1, false);
  other.join();
}

void await_progress(const std::atomic<uint64_t>& counter, uint64_t by) {
  for (const uint64_t goal = counter + by; counter < goal;) ::sched_yield();
}

/// An engine of its own, so that it can be killed: tracks, and collects without pause; c.d counts.
pid_t start_engine(Target& target, Fd uffd) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const AddressRange range = pages_at(target.control().a, 0, kPages);
  auto tracker = SyncTracker::create(target.pid(), std::move(uffd));
  if (!tracker.ok() || !tracker.value()->track({range}).ok()) ::_exit(1);
  while (tracker.value()->collect(range).ok()) target.control().d++;
  ::_exit(1);
}

TEST_F(SyncTrackerTest, AKilledEngineLeavesNobodyWaitingAndNothingProtected) {
  for (uint64_t round = 0; round < 20; round++) {
    Target target({map_all, write_everywhere});
    target.run(0);
    const pid_t engine = start_engine(target, target.make_uffd());
    target.begin(1);
    await_progress(target.control().d, 1 + round * 3);
    await_progress(target.control().c, 10);
    ::kill(engine, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(engine, &status, 0), engine);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the engine ended by itself: " << status;
    await_progress(target.control().c, 100'000);
    const std::string areas = read_file("/proc/" + std::to_string(target.pid()) + "/smaps").take();
    EXPECT_EQ(areas.find(" uw"), std::string::npos) << "an area is still registered";
    target.control().b = 1;
    target.finish();
  }
}

TEST_F(SyncTrackerTest, AThreadThatWaitsForAnAnswerCanBeStopped) {
  Target target({map_all, [](auto& c) { touch(c.a, 7, 2); }});
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, kPages);
  // Nobody answers.
  Uffd uffd = Uffd::adopt(target.make_uffd(), UFFD_FEATURE_PAGEFAULT_FLAG_WP).take();
  ASSERT_TRUE(uffd.register_range(range, UFFDIO_REGISTER_MODE_WP).ok());
  ASSERT_TRUE(uffd.protect(range).ok());
  target.begin(1);
  std::array<uffd_msg, 1> fault;
  while (uffd.read_faults(fault).value() == 0) ::sched_yield();
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  for (int i = 0; i < 10; i++) {
    auto frozen = tracee::Frozen::freeze(*process);
    ASSERT_TRUE(frozen.ok()) << frozen.error().message();
    EXPECT_EQ(target.read(pages_at(target.control().a, 7, 1))[0], std::byte{1});
    ASSERT_TRUE(frozen->finish().ok());
    while (uffd.read_faults(fault).value() == 0) ::sched_yield();  // it faults again
  }
  uffd = Uffd();
  target.finish();
  EXPECT_EQ(target.read(pages_at(target.control().a, 7, 1))[0], std::byte{2});
}

TEST_F(SyncTrackerTest, FreezesAndFaultsGoOnTogether) {
  Target target({map_all, write_everywhere});
  const auto tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, kPages);
  track(*tracker, range);
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  std::vector<std::byte> copy(range.size());
  target.begin(1);
  for (int round = 0; round < 100; round++) {
    for (const PageRun& run : collect(*tracker, range)) {
      const auto bytes = target.read(run.range);
      std::copy(bytes.begin(), bytes.end(),
                copy.begin() + static_cast<ssize_t>(run.range.start - range.start));
    }
    auto frozen = tracee::Frozen::freeze(*process);
    ASSERT_TRUE(frozen.ok()) << frozen.error().message();
    // What is still as it was collected is not told, and what is told is the rest.
    auto last = tracker->last_pass(range);
    ASSERT_TRUE(last.ok()) << last.error().message();
    std::vector<std::byte> then = copy;
    for (const PageRun& run : *last) {
      const auto bytes = target.read(run.range);
      std::copy(bytes.begin(), bytes.end(),
                then.begin() + static_cast<ssize_t>(run.range.start - range.start));
    }
    ASSERT_EQ(target.read(range), then) << "round " << round;
    ASSERT_TRUE(frozen->finish().ok());
  }
  target.control().b = 1;
  target.finish();
  EXPECT_GT(tracker->faults(), 100u);
}

TEST_F(SyncTrackerTest, NobodyWaitsForMemoryThatGoesAway) {
  // By read(2), which answers EFAULT where nothing is mapped.
  Target target({map_all, [](auto& c) {
                   const Fd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
                   std::thread writer([&] {
                     for (Random random{3}; c.b == 0; c.c++) {
                       void* at = reinterpret_cast<void*>(c.a + random.next() % kPages * kPageSize);
                       if (::read(zero.get(), at, 64) < 0 && errno != EFAULT) ::_exit(3);
                     }
                   });
                   const uint64_t room = map_apart(kPages);
                   for (Random random{4}; c.b == 0;) {
                     const size_t first = random.next() % (kPages - 64);
                     void* at = reinterpret_cast<void*>(c.a + first * kPageSize);
                     void* away = reinterpret_cast<void*>(room + first * kPageSize);
                     switch (random.next() % 3) {
                       case 0:
                         ::munmap(at, 64 * kPageSize);
                         map_pages(64, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
                                   c.a + first * kPageSize);
                         break;
                       case 1:
                         ::madvise(at, 64 * kPageSize, MADV_DONTNEED);
                         break;
                       default:
                         ::mremap(at, 64 * kPageSize, 64 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, away);
                         ::mremap(away, 64 * kPageSize, 64 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, at);
                     }
                   }
                   writer.join();
                 }});
  const auto tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  target.begin(1);
  for (int round = 0; round < 200; round++) {
    std::vector<AddressRange> areas;
    for (const auto& area : read_areas(target.pid()).take()) {
      const AddressRange part = intersect(area.range, pages_at(base, 0, kPages));
      if (!part.empty()) areas.push_back(part);
    }
    ASSERT_TRUE(tracker->track(areas).ok());
    for (const AddressRange area : areas) {
      const auto runs = tracker->collect(area);
      ASSERT_TRUE(runs.ok() || runs.error().kind == ErrorKind::kRetry) << runs.error().message();
    }
    await_progress(target.control().c, 20);
  }
  target.control().b = 1;
  target.finish();
  EXPECT_GT(tracker->faults(), 0u);
}

TEST_F(SyncTrackerTest, WhoWritesPageAfterPageFaultsSeldom) {
  Target target({map_all, [](auto& c) {
                   for (size_t i = 0; i < kPages; i++) touch(c.a, i, 2);
                 }});
  const auto tracker = make(target);
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, kPages);
  track(*tracker, range);
  collect(*tracker, range);
  target.run(1);
  EXPECT_EQ(all_of(collect(*tracker, range), target.control().a), count_up(kPages));
  EXPECT_LT(tracker->faults(), kPages / 16);
  const uint64_t before = tracker->faults();
  tracker->fault_on_each(true);  // while somebody counts them
  target.run(1);
  EXPECT_EQ(tracker->faults() - before, kPages);
}

TEST_F(SyncTrackerTest, ReadingIsNoWrite) {
  Target target({map_all});
  const auto tracker = make(target);
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, kPages);
  track(*tracker, range);
  collect(*tracker, range);
  target.read(range);
  EXPECT_THAT(collect(*tracker, range), IsEmpty());
  EXPECT_EQ(tracker->faults(), 0u);
}

TEST_F(SyncTrackerTest, FilesAndSharedMemoryComeBackUntrackable) {
  const Fd file = make_file(16);
  const Fd memfd(::memfd_create("untrackable", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), 16 * kPageSize), 0);
  Target target({[&](auto& c) {
    c.a = map_apart(16, MAP_PRIVATE, file.get());
    c.b = map_apart(16, MAP_SHARED, file.get());
    c.c = map_apart(16, MAP_PRIVATE, memfd.get());
    c.d = map_apart(16, MAP_SHARED | MAP_ANONYMOUS);
    for (const uint64_t base : {c.a.load(), c.b.load(), c.c.load(), c.d.load()}) touch(base, 3, 1);
  }});
  const auto tracker = make(target);
  target.run(0);
  auto& c = target.control();
  for (const uint64_t base : {c.a.load(), c.b.load(), c.c.load(), c.d.load()}) {
    const AddressRange range = pages_at(base, 0, 16);
    const auto untrackable = tracker->track({range});
    ASSERT_TRUE(untrackable.ok()) << untrackable.error().message();
    EXPECT_THAT(untrackable.value(), ElementsAre(range));
    const bool is_private = base == c.a || base == c.c;
    for (int round = 0; round < 2; round++) {
      const PageRuns told = collect(*tracker, range);
      EXPECT_EQ(present_of(told, base), all_of(told, base));
      EXPECT_EQ(testing::Value(all_of(told, base), testing::Contains(3)), !is_private);
      for (const PageRun& run : told) EXPECT_TRUE(run.file && run.written);
    }
    const PageRuns runs = survey(*tracker, range);
    EXPECT_THAT(present_of(runs, base), testing::Contains(3));
    for (const PageRun& run : runs) EXPECT_TRUE(run.written) << "nothing tells it from clean";
    const auto own = [](const PageRun& run) { return run.present && !run.file; };
    EXPECT_THAT(pages_of(runs, base, own), testing::Conditional(is_private, ElementsAre(3), IsEmpty()));
  }
}

// KERNEL: access_remote_vm() cannot wait, so a debugger's write to a clean page fails. If it ever can, the
// write must be seen.
TEST_F(SyncTrackerTest, AForcedWriteFailsOrIsSeen) {
  Target target({map_all, [](auto& c) {
                   const Fd memory(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
                   const char byte = 9;
                   c.b = ::pwrite(memory.get(), &byte, 1, static_cast<off_t>(c.a + 5 * kPageSize)) == 1;
                 }});
  const auto tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, kPages);
  track(*tracker, range);
  collect(*tracker, range);
  target.run(1);
  const bool written = target.read(pages_at(base, 5, 1))[0] == std::byte{9};
  EXPECT_EQ(written, target.control().b == 1);
  if (written)
    EXPECT_THAT(all_of(collect(*tracker, range), base), ElementsAre(5));
  else
    EXPECT_THAT(collect(*tracker, range), IsEmpty());
}

// What the destination asks of a kernel without PAGEMAP_SCAN.
TEST_F(SyncTrackerTest, ReadingPagemapTellsWhatAScanTells) {
  if (!kernel_features().pagemap_scan) GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
  const Fd file = make_file(16);
  Target target({[&](auto& c) {
    c.a = map_apart(64);
    for (const size_t page : {1, 2, 3, 40}) touch(c.a, page, 1);
    c.b = map_apart(16, MAP_PRIVATE, file.get());
    for (size_t i = 0; i < 16; i++) c.c += *reinterpret_cast<volatile uint8_t*>(c.b + i * kPageSize);
    touch(c.b, 5, 1);
  }});
  target.run(0);
  const PageScanner scanner = PageScanner::create(target.pid(), 1).take();
  constexpr uint64_t kPopulated = uapi::kPageIsPresent | uapi::kPageIsSwapped;
  constexpr uint64_t kOwn = uapi::kPageIsPresent | uapi::kPageIsFile;
  const std::array<ScanQuery, 3> queries = {ScanQuery{0, 0, kPopulated, kPopulated},
                                            ScanQuery{0, kOwn, 0, kOwn, uapi::kPageIsFile},
                                            ScanQuery{0, 0, kPopulated, kOwn}};
  for (const ScanQuery& query : queries) {
    for (const AddressRange range :
         {pages_at(target.control().a, 0, 64), pages_at(target.control().b, 0, 16)}) {
      std::array<uapi::PageRegion, 64> scratch{};
      PageRegions scanned, read;
      ASSERT_TRUE(scan_pagemap(scanner.pagemap_fd(), range, query, scratch, scanned).ok());
      ASSERT_TRUE(scan_by_reading(scanner.pagemap_fd(), range, query, read).ok());
      ASSERT_EQ(read.size(), scanned.size());
      for (size_t i = 0; i < read.size(); i++) {
        EXPECT_EQ(read[i].start, scanned[i].start);
        EXPECT_EQ(read[i].end, scanned[i].end);
        EXPECT_EQ(read[i].categories, scanned[i].categories);
      }
    }
  }
}

}  // namespace
}  // namespace godwit::uffd
