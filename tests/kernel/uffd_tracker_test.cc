// What both trackers promise of writes and of a layout that changes, held against the running kernel.
#include <gmock/gmock.h>
#include <sys/uio.h>

#include <thread>

#include "tests/kernel/uffd_tracker_fixture.h"

namespace godwit::uffd {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): the fixture of this very file
using testing::ElementsAre;
using testing::IsEmpty;

TEST_P(AnyTrackerTest, TellsEachWriteOnceAndOnlyPopulatedPages) {
  Target target({[](auto& c) {
                   c.a = map_apart(1024);
                   for (const size_t page : {1, 5, 6, 700}) touch(c.a, page, 1);
                 },
                 [](auto& c) {
                   touch(c.a, 6, 2);
                   touch(c.a, 9, 2);
                 },
                 [](auto& c) { c.b = *reinterpret_cast<volatile uint8_t*>(c.a + 800 * kPageSize); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 1024);
  track(tracker, range);
  const PageRuns first = collect(tracker, range);
  EXPECT_THAT(all_of(first, base), ElementsAre(1, 5, 6, 700));
  for (const PageRun& run : first) EXPECT_TRUE(run.written && run.present && !run.file && !run.zero);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  target.run(1);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(6, 9));
  target.run(2);  // a read of an untouched page maps the shared zero page
  const PageRuns read_only = collect(tracker, range);
  ASSERT_THAT(all_of(read_only, base), ElementsAre(800));
  EXPECT_EQ(read_only[0].zero, GetParam() == Kind::kUffd);  // pagemap does not show it
  EXPECT_THAT(all_of(survey(tracker, range), base), ElementsAre(1, 5, 6, 9, 700, 800));
  track(tracker, range);  // again: stays as it was
  EXPECT_THAT(collect(tracker, range), IsEmpty());
}

TEST_P(AnyTrackerTest, AReplacedMappingIsRetryAndLosesNothing) {
  Target target({[](auto& c) {
                   c.a = map_apart(96);
                   for (size_t i = 0; i < 96; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   touch(c.a, 4, 2);
                   map_pages(32, MAP_PRIVATE | MAP_ANONYMOUS, -1, c.a + 32 * kPageSize);
                   touch(c.a, 40, 2);
                   touch(c.a, 90, 2);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 96);
  track(tracker, range);
  EXPECT_EQ(all_of(collect(tracker, range), base), count_up(96));
  target.run(1);
  expect_retry(tracker, range);
  EXPECT_THAT(present_of(survey(tracker, pages_at(base, 32, 32)), base), ElementsAre(40));
  track(tracker, range);
  // Page 4 was cleared in the kernel by the call that failed; it must not be lost.
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(4, 40, 90));
  EXPECT_THAT(collect(tracker, range), IsEmpty());
}

TEST_P(AnyTrackerTest, OwedPagesAreToldByWhoeverAsksForThem) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) { map_pages(1, MAP_PRIVATE | MAP_ANONYMOUS, -1, c.a + 63 * kPageSize); },
                 [](auto& c) { touch(c.a, 20, 2); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 64));
  target.run(1);
  expect_retry(tracker, pages_at(base, 0, 64));
  target.run(2);
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 8)), base), count_up(8));
  EXPECT_THAT(collect(tracker, pages_at(base, 0, 8)), IsEmpty());
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 8, 55)), base).size(), 55u);
}

TEST_P(AnyTrackerTest, MovedAndGrownMappingsAreSeen) {
  Target target({[](auto& c) {
                   c.a = map_apart(16);
                   for (size_t i = 0; i < 16; i++) touch(c.a, i, 1);
                   c.b = map_apart(64);
                 },
                 [](auto& c) {  // move, and grow in the same step
                   void* to = reinterpret_cast<void*>(c.b.load());
                   void* got = ::mremap(reinterpret_cast<void*>(c.a.load()), 16 * kPageSize, 32 * kPageSize,
                                        MREMAP_MAYMOVE | MREMAP_FIXED, to);
                   if (got != to) ::_exit(3);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t old_base = target.control().a, base = target.control().b;
  track(tracker, pages_at(old_base, 0, 16));
  EXPECT_EQ(all_of(collect(tracker, pages_at(old_base, 0, 16)), old_base), count_up(16));
  target.run(1);
  EXPECT_THAT(collect(tracker, pages_at(old_base, 0, 16)), IsEmpty());
  EXPECT_THAT(survey(tracker, pages_at(old_base, 0, 16)), IsEmpty());
  expect_retry(tracker, pages_at(base, 0, 32));
  track(tracker, pages_at(base, 0, 32));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 32)), base), count_up(16));
}

// KERNEL: mremap to a place beside a tracked area joins the two, and then drops the tracking of the whole.
// The neighbour's marks stay: a page that is written now is both writable and marked, which looks clean for
// ever.
TEST_P(AnyTrackerTest, MarksThatAJoinedNeighbourKeepsAreSeenThrough) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 16; i++) touch(c.a, i, 1);
                   ::munmap(reinterpret_cast<void*>(c.a + 16 * kPageSize), 16 * kPageSize);
                   c.b = map_apart(16);
                 },
                 [](auto& c) {
                   void* to = reinterpret_cast<void*>(c.a + 16 * kPageSize);
                   if (::mremap(reinterpret_cast<void*>(c.b.load()), 16 * kPageSize, 16 * kPageSize,
                                MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
                     ::_exit(3);
                   touch(c.a, 3, 2);
                 },
                 [](auto& c) { touch(c.a, 3, 3); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange all = pages_at(base, 0, 32);
  track(tracker, pages_at(base, 0, 16));
  track(tracker, pages_at(target.control().b, 0, 16));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 16)), base), count_up(16));
  target.run(1);
  expect_retry(tracker, all);
  // Nothing tells written from clean there, so all that is there is told.
  auto last = tracker.last_pass(all);
  ASSERT_TRUE(last.ok()) << last.error().message();
  EXPECT_EQ(present_of(*last, base), count_up(16));
  track(tracker, all);
  collect(tracker, all);
  const Status unmarked = tracker.unmark(pages_at(base, 0, 16));
  ASSERT_TRUE(unmarked.ok()) << unmarked.error().message();
  EXPECT_EQ(all_of(collect(tracker, all), base), count_up(16));
  EXPECT_THAT(collect(tracker, all), IsEmpty());
  target.run(2);
  EXPECT_THAT(all_of(collect(tracker, all), base), ElementsAre(3));
}

TEST_P(AnyTrackerTest, AMappingGrownInPlaceStaysTracked) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   ::munmap(reinterpret_cast<void*>(c.a + 16 * kPageSize), 48 * kPageSize);
                   for (size_t i = 0; i < 16; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   ::mremap(reinterpret_cast<void*>(c.a.load()), 16 * kPageSize, 64 * kPageSize, 0);
                   touch(c.a, 2, 2);
                   touch(c.a, 33, 2);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 16));
  collect(tracker, pages_at(base, 0, 16));
  target.run(1);
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 64)), base), ElementsAre(2, 33));
}

TEST_P(AnyTrackerTest, AGrownHeapIsRetryThenTracked) {
  Target target({[](auto& c) {
                   c.a = page_ceil(reinterpret_cast<uint64_t>(::sbrk(0)));
                   ::brk(reinterpret_cast<void*>(c.a + 16 * kPageSize));
                   for (size_t i = 0; i < 16; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   ::brk(reinterpret_cast<void*>(c.a + 48 * kPageSize));
                   touch(c.a, 3, 2);
                   touch(c.a, 20, 2);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 16));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 16)), base), count_up(16));
  target.run(1);
  expect_retry(tracker, pages_at(base, 0, 48));
  track(tracker, pages_at(base, 0, 48));
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 48)), base), ElementsAre(3, 20));
}

TEST_P(AnyTrackerTest, ForkLeavesTheParentTracked) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   const pid_t child = ::fork();
                   if (child == 0) {
                     touch(c.a, 20, 9);
                     ::pause();
                   }
                   touch(c.a, 7, 2);
                   ::kill(child, SIGKILL);
                   ::waitpid(child, nullptr, 0);
                   touch(c.a, 8, 2);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 32));
  collect(tracker, pages_at(base, 0, 32));
  target.run(1);
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 32)), base), ElementsAre(7, 8));
}

TEST_P(AnyTrackerTest, ChangedProtectionIsNoWrite) {
  Target target(
      {[](auto& c) {
         c.a = map_apart(32);
         for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
       },
       [](auto& c) {
         ::mprotect(reinterpret_cast<void*>(c.a.load()), 32 * kPageSize, PROT_READ);
         ::mprotect(reinterpret_cast<void*>(c.a.load()), 32 * kPageSize, PROT_READ | PROT_WRITE);
       },
       [](auto& c) { touch(c.a, 30, 2); },
       [](auto& c) { ::mprotect(reinterpret_cast<void*>(c.a.load()), 32 * kPageSize, PROT_NONE); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 32);
  track(tracker, range);
  collect(tracker, range);
  target.run(1);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  target.run(2);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(30));
  target.run(3);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  EXPECT_EQ(all_of(survey(tracker, range), base), count_up(32));
}

TEST_P(AnyTrackerTest, KernelWritesAreSeen) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   const Fd zero(::open("/dev/zero", O_RDONLY));
                   if (::read(zero.get(), reinterpret_cast<void*>(c.a + 5 * kPageSize), 16) != 16) ::_exit(3);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 32);
  track(tracker, range);
  collect(tracker, range);
  target.run(1);
  char byte = 7;
  const iovec local{&byte, 1};
  const iovec remote{reinterpret_cast<void*>(base + 11 * kPageSize), 1};
  ASSERT_EQ(::process_vm_writev(target.pid(), &local, 1, &remote, 1, 0), 1);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(5, 11));
}

TEST_P(AnyTrackerTest, NoWriteDuringACollectIsLost) {
  constexpr size_t kPages = 32768;  // 128 MiB, so that the helper takes part
  Target target({[](auto& c) {
                   c.a = map_pages(kPages);
                   for (size_t i = 0; i < kPages; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   const auto write = [&c](uint64_t seed) {
                     while (c.b == 0) {
                       seed = seed * 6364136223846793005 + 1442695040888963407;
                       *reinterpret_cast<volatile uint64_t*>(c.a + (seed >> 33) % kPages * kPageSize +
                                                             8 * (seed & 511)) = seed;
                     }
                   };
                   std::thread other(write, 2);
                   c.c = 1;  // running
                   write(1);
                   other.join();
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, kPages);
  track(tracker, range);
  std::vector<std::byte> copy(range.size());
  size_t copied = 0;
  const auto copy_round = [&] {
    for (const PageRun& run : collect(tracker, range)) {
      const iovec local{copy.data() + (run.range.start.value() - base), run.range.size()};
      const iovec remote{reinterpret_cast<void*>(run.range.start.value()), run.range.size()};
      ASSERT_EQ(::process_vm_readv(target.pid(), &local, 1, &remote, 1, 0),
                static_cast<ssize_t>(run.range.size()));
      copied += run.range.pages();
    }
  };
  target.begin(1);
  for (int round = 0; round < 12; round++) copy_round();
  target.control().b = 1;
  target.finish();
  copy_round();
  EXPECT_GT(copied, kPages);  // the writer did write between the rounds
  EXPECT_EQ(target.read(range), copy);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
}

TEST_P(AnyTrackerTest, ADeadTargetIsToldFromAnIdleOne) {
  Target target({[](auto& c) {
    c.a = map_apart(16);
    touch(c.a, 1, 1);
  }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, 16);
  track(tracker, range);
  target.kill();
  EXPECT_EQ(tracker.collect(range).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(tracker.survey(range).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(tracker.track({range}).error().kind, ErrorKind::kTargetGone);
}

TEST_P(AnyTrackerTest, AFragmentedScanIsTheSameInPartsAndInOne) {
  constexpr size_t kPages = 65536;
  Target target({[](auto& c) {
    c.a = map_pages(kPages);
    ::madvise(reinterpret_cast<void*>(c.a.load()), kPages * kPageSize, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < kPages; i += 2) touch(c.a, i, 1);
  }});
  const auto owner = make(target, 2);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, kPages);
  track(tracker, range);
  PageScanner alone = PageScanner::create(target.pid(), 1).take();
  PageRegions found;
  ASSERT_TRUE(alone.scan(range, {0, 0, uapi::kPageIsPresent, uapi::kPageIsPresent}, found).ok());
  ASSERT_EQ(found.size(), kPages / 2);
  const PageRuns runs = collect(tracker, range);
  ASSERT_EQ(runs.size(), kPages / 2);
  for (size_t i = 0; i < runs.size(); i++) ASSERT_EQ(runs[i].range, pages_at(base, 2 * i, 1));
  EXPECT_THAT(collect(tracker, range), IsEmpty());
}

TEST_P(AnyTrackerTest, ReleasingLeavesTheTargetAsItWas) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 2);
                 }});
  const uint64_t base = [&] {
    const auto owner = make(target);
    DirtyTracker& tracker = *owner;
    target.run(0);
    track(tracker, pages_at(target.control().a, 0, 32));
    collect(tracker, pages_at(target.control().a, 0, 32));
    tracker.release();
    return target.control().a.load();
  }();
  target.run(1);
  EXPECT_EQ(target.read(pages_at(base, 31, 1))[0], std::byte{2});
  const auto again_owner = make(target);
  DirtyTracker& again = *again_owner;  // a second engine may come
  track(again, pages_at(base, 0, 32));
  EXPECT_EQ(all_of(collect(again, pages_at(base, 0, 32)), base), count_up(32));
}

TEST(MergeRuns, NewerWinsAndGapsAreFilled) {
  const auto run = [](uint64_t first, uint64_t end, bool zero) {
    PageRun r;
    r.range = range_of(first << kPageShift, end << kPageShift);
    r.zero = zero;
    return r;
  };
  const PageRuns merged =
      merge_runs({run(2, 4, true), run(6, 7, true)}, {run(1, 9, false), run(12, 13, false)});
  EXPECT_THAT(merged, ElementsAre(run(1, 2, false), run(2, 4, true), run(4, 6, false), run(6, 7, true),
                                  run(7, 9, false), run(12, 13, false)));
  EXPECT_THAT(merge_runs({run(0, 9, true)}, {run(3, 4, false)}), ElementsAre(run(0, 9, true)));
  EXPECT_THAT(merge_runs({}, {run(3, 4, false)}), ElementsAre(run(3, 4, false)));
}

GODWIT_FOR_BOTH_TRACKERS(AnyTrackerTest);

}  // namespace
}  // namespace godwit::uffd
