// What wp_tracker promises, held against the running kernel.
#include <gmock/gmock.h>
#include <sys/uio.h>
#include <thread>

#include "engine/base/kernel_features.h"
#include "tests/kernel/uffd_target.h"
#include "uffd/wp_tracker.h"

namespace godwit::uffd {
namespace {

using test::map_apart;
using test::map_pages;
using test::pages_at;
using test::Target;
using test::touch;
using testing::ElementsAre;
using testing::IsEmpty;

using PageList = std::vector<uint64_t>;

/// The page numbers, counted from `base`, of the runs that `wanted` accepts.
template <typename Wanted>
PageList pages_of(const PageRuns& runs, uint64_t base, Wanted wanted) {
  PageList pages;
  for (const PageRun& run : runs) {
    for (uint64_t at = run.range.start.value(); wanted(run) && at < run.range.end.value(); at += kPageSize) {
      pages.push_back((at - base) >> kPageShift);
    }
  }
  return pages;
}
PageList all_of(const PageRuns& runs, uint64_t base) {
  return pages_of(runs, base, [](const PageRun&) { return true; });
}
PageList present_of(const PageRuns& runs, uint64_t base) {
  return pages_of(runs, base, [](const PageRun& run) { return run.present; });
}
PageList count_up(uint64_t n) {
  PageList pages(n);
  for (uint64_t i = 0; i < n; i++) pages[i] = i;
  return pages;
}

class WpTrackerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!kernel_features().uffd_wp_async) GTEST_SKIP() << "this kernel has no UFFD_FEATURE_WP_ASYNC";
  }
  static WpTracker make(Target& target, unsigned threads = 2) {
    auto tracker = WpTracker::create(target.pid(), target.make_uffd(), threads);
    EXPECT_TRUE(tracker.ok()) << (tracker.ok() ? "" : tracker.error().message());
    return tracker.take();
  }
  static void track(WpTracker& tracker, AddressRange range) {
    auto untrackable = tracker.track({range});
    ASSERT_TRUE(untrackable.ok()) << untrackable.error().message();
    ASSERT_THAT(*untrackable, IsEmpty());
  }
  static PageRuns collect(WpTracker& tracker, AddressRange range) {
    auto runs = tracker.collect(range);
    EXPECT_TRUE(runs.ok()) << (runs.ok() ? "" : runs.error().message());
    return runs.ok() ? runs.take() : PageRuns{};
  }
  static PageRuns survey(WpTracker& tracker, AddressRange range) {
    auto runs = tracker.survey(range);
    EXPECT_TRUE(runs.ok()) << (runs.ok() ? "" : runs.error().message());
    return runs.ok() ? runs.take() : PageRuns{};
  }
  static void expect_retry(WpTracker& tracker, AddressRange range) {
    const auto runs = tracker.collect(range);
    ASSERT_FALSE(runs.ok());
    EXPECT_EQ(runs.error().kind, ErrorKind::kRetry) << runs.error().message();
  }
};

TEST_F(WpTrackerTest, TellsEachWriteOnceAndOnlyPopulatedPages) {
  Target target({[](auto& c) {
                   c.a = map_apart(1024);
                   for (const size_t page : {1, 5, 6, 700}) touch(c.a, page, 1);
                 },
                 [](auto& c) {
                   touch(c.a, 6, 2);
                   touch(c.a, 9, 2);
                 },
                 [](auto& c) { c.b = *reinterpret_cast<volatile uint8_t*>(c.a + 800 * kPageSize); }});
  WpTracker tracker = make(target);
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
  EXPECT_TRUE(read_only[0].zero);
  EXPECT_THAT(all_of(survey(tracker, range), base), ElementsAre(1, 5, 6, 9, 700, 800));
  track(tracker, range);  // again: stays as it was
  EXPECT_THAT(collect(tracker, range), IsEmpty());
}

TEST_F(WpTrackerTest, ASparseMappingCostsNoPageTables) {
  Target target({[](auto& c) {
    c.a = reinterpret_cast<uint64_t>(::mmap(nullptr, uint64_t{64} << 30, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    touch(c.a, 12345, 1);
  }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, uint64_t{64} << (30 - kPageShift));
  const auto page_tables = [&] {
    const std::string path = "/proc/" + std::to_string(target.pid()) + "/status";
    std::string text(8192, '\0');
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    text.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(fd.get(), text.data(), text.size()))));
    return std::atoi(text.c_str() + text.find("VmPTE:") + 6);
  };
  const int before = page_tables();
  track(tracker, range);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(12345));
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  EXPECT_EQ(page_tables(), before);
}

TEST_F(WpTrackerTest, ADiscardShowsOnlyInTheSurvey) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   ::madvise(reinterpret_cast<void*>(c.a + 8 * kPageSize), 16 * kPageSize, MADV_DONTNEED);
                 },
                 [](auto& c) { touch(c.a, 10, 3); }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 64);
  track(tracker, range);
  EXPECT_EQ(all_of(collect(tracker, range), base), count_up(64));
  target.run(1);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  PageList left = count_up(64);
  left.erase(left.begin() + 8, left.begin() + 24);
  EXPECT_EQ(all_of(survey(tracker, range), base), left);
  target.run(2);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(10));
}

TEST_F(WpTrackerTest, ADiscardedHugePageShowsOnlyInTheSurvey) {
  Target target({[](auto& c) {
                   c.a = map_pages(1536);
                   c.b = (c.a + 2_MiB - 1) & ~(2_MiB - 1);
                   ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_HUGEPAGE);
                   std::memset(reinterpret_cast<void*>(c.b.load()), 1, 2_MiB);
                 },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_DONTNEED); },
                 [](auto& c) { touch(c.b, 3, 7); }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().b;
  const AddressRange range = pages_at(base, 0, 512);
  track(tracker, range);
  EXPECT_EQ(all_of(collect(tracker, range), base), count_up(512));
  target.run(1);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  EXPECT_THAT(survey(tracker, range), IsEmpty());
  target.run(2);
  EXPECT_THAT(all_of(collect(tracker, range), base), testing::Contains(3));
}

TEST_F(WpTrackerTest, AReplacedMappingIsRetryAndLosesNothing) {
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
  WpTracker tracker = make(target);
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

TEST_F(WpTrackerTest, OwedPagesAreToldByWhoeverAsksForThem) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) { map_pages(1, MAP_PRIVATE | MAP_ANONYMOUS, -1, c.a + 63 * kPageSize); },
                 [](auto& c) { touch(c.a, 20, 2); }});
  WpTracker tracker = make(target);
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

TEST_F(WpTrackerTest, MovedAndGrownMappingsAreSeen) {
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
  WpTracker tracker = make(target);
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

TEST_F(WpTrackerTest, AMappingGrownInPlaceStaysTracked) {
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
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 16));
  collect(tracker, pages_at(base, 0, 16));
  target.run(1);
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 64)), base), ElementsAre(2, 33));
}

TEST_F(WpTrackerTest, AGrownHeapIsRetryThenTracked) {
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
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 16));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 16)), base), count_up(16));
  target.run(1);
  expect_retry(tracker, pages_at(base, 0, 48));
  track(tracker, pages_at(base, 0, 48));
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 48)), base), ElementsAre(3, 20));
}

TEST_F(WpTrackerTest, ForkLeavesTheParentTracked) {
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
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  track(tracker, pages_at(base, 0, 32));
  collect(tracker, pages_at(base, 0, 32));
  target.run(1);
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 32)), base), ElementsAre(7, 8));
}

TEST_F(WpTrackerTest, ChangedProtectionIsNoWrite) {
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
  WpTracker tracker = make(target);
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

TEST_F(WpTrackerTest, GuardPagesStayGuards) {
  if (!kernel_features().guard_regions) GTEST_SKIP() << "this kernel has no MADV_GUARD_INSTALL";
  Target target(
      {[](auto& c) {
         c.a = map_apart(32);
         for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
       },
       [](auto& c) {
         ::madvise(reinterpret_cast<void*>(c.a + 8 * kPageSize), 4 * kPageSize, uapi::kMadvGuardInstall);
       },
       [](auto& c) {  // c = 1 when a store into a guard page still kills
         const pid_t child = ::fork();
         if (child == 0) {
           ::signal(SIGSEGV, SIG_DFL);
           touch(c.a, 9, 5);
           ::_exit(0);
         }
         int status = 0;
         ::waitpid(child, &status, 0);
         c.c = WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
       },
       [](auto& c) {
         ::madvise(reinterpret_cast<void*>(c.a + 8 * kPageSize), 4 * kPageSize, uapi::kMadvGuardRemove);
         touch(c.a, 9, 5);
       }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 32);
  track(tracker, range);
  collect(tracker, range);
  target.run(1);
  const auto guards = [&](const PageRuns& runs) {
    return pages_of(runs, base, [](const PageRun& run) { return run.guard && !run.present; });
  };
  for (int round = 0; round < 2; round++) {
    collect(tracker, range);
    EXPECT_THAT(guards(survey(tracker, range)), ElementsAre(8, 9, 10, 11));
    target.run(2);
    EXPECT_EQ(target.control().c, 1u);
  }
  target.run(3);
  EXPECT_THAT(all_of(collect(tracker, range), base), ElementsAre(9));
  EXPECT_THAT(guards(survey(tracker, range)), IsEmpty());
}

TEST_F(WpTrackerTest, KernelWritesAreSeen) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   const Fd zero(::open("/dev/zero", O_RDONLY));
                   if (::read(zero.get(), reinterpret_cast<void*>(c.a + 5 * kPageSize), 16) != 16) ::_exit(3);
                 }});
  WpTracker tracker = make(target);
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

TEST_F(WpTrackerTest, NoWriteDuringACollectIsLost) {
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
  WpTracker tracker = make(target);
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

Fd make_file(size_t pages) {
  Fd fd(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(fd.valid());
  const std::vector<char> text(kPageSize, 'f');
  for (size_t i = 0; i < pages; i++)
    EXPECT_EQ(::write(fd.get(), text.data(), text.size()), ssize_t{kPageSize});
  return fd;
}

TEST_F(WpTrackerTest, APrivateFileTellsItsOwnPagesFromChangedAndDiscardedOnes) {
  const Fd file = make_file(64);
  Target target(
      {[&](auto& c) {
         c.a = map_apart(64, MAP_PRIVATE, file.get());
         for (size_t i = 0; i < 64; i++) c.b += *reinterpret_cast<volatile uint8_t*>(c.a + i * kPageSize);
         touch(c.a, 3, 1);
         touch(c.a, 4, 1);
       },
       [](auto& c) { ::madvise(reinterpret_cast<void*>(c.a + 4 * kPageSize), kPageSize, MADV_DONTNEED); },
       [](auto& c) { c.b += *reinterpret_cast<volatile uint8_t*>(c.a + 4 * kPageSize); },
       [](auto& c) { touch(c.a, 4, 2); }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 64);
  track(tracker, range);
  const auto changed = [&](const PageRuns& runs) {
    return pages_of(runs, base, [](const PageRun& run) { return run.present && !run.file; });
  };
  const PageRuns first = collect(tracker, range);
  EXPECT_THAT(changed(first), ElementsAre(3, 4));
  EXPECT_EQ(all_of(first, base), count_up(64));
  target.run(1);
  EXPECT_THAT(changed(collect(tracker, range)), IsEmpty());
  EXPECT_THAT(changed(survey(tracker, range)), ElementsAre(3));  // the marker left behind is no page
  target.run(2);
  EXPECT_THAT(changed(collect(tracker, range)), IsEmpty());
  EXPECT_THAT(changed(survey(tracker, range)), ElementsAre(3));
  target.run(3);
  EXPECT_THAT(changed(collect(tracker, range)), ElementsAre(4));
}

TEST_F(WpTrackerTest, SharedFilesAndSharedMemoryAreTracked) {
  const Fd file = make_file(16);
  const Fd memfd(::memfd_create("tracked", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), 16 * kPageSize), 0);
  Target target({[&](auto& c) {
                   c.a = map_apart(16, MAP_SHARED, file.get());
                   c.b = map_apart(16, MAP_SHARED, memfd.get());
                   c.c = map_apart(16, MAP_SHARED | MAP_ANONYMOUS);
                   for (const uint64_t base : {c.a.load(), c.b.load(), c.c.load()}) touch(base, 2, 1);
                 },
                 [](auto& c) {
                   for (const uint64_t base : {c.a.load(), c.b.load(), c.c.load()}) touch(base, 2, 2);
                   for (const uint64_t base : {c.a.load(), c.b.load(), c.c.load()}) touch(base, 7, 2);
                 }});
  WpTracker tracker = make(target);
  target.run(0);
  for (const uint64_t base :
       {target.control().a.load(), target.control().b.load(), target.control().c.load()}) {
    track(tracker, pages_at(base, 0, 16));
    // Reading around a fault may map more of the file; what counts is that the written page is among them.
    EXPECT_THAT(all_of(collect(tracker, pages_at(base, 0, 16)), base), testing::Contains(2));
    EXPECT_THAT(collect(tracker, pages_at(base, 0, 16)), IsEmpty());
  }
  target.run(1);
  for (const uint64_t base :
       {target.control().a.load(), target.control().b.load(), target.control().c.load()}) {
    const PageRuns runs = collect(tracker, pages_at(base, 0, 16));
    EXPECT_THAT(all_of(runs, base), ElementsAre(2, 7));
    for (const PageRun& run : runs)
      EXPECT_FALSE(run.file) << "a written page of a shared mapping is not clean";
  }
}

TEST_F(WpTrackerTest, UntrackableRangesComeBackAndTheirNeighboursAreTracked) {
  const Fd file = make_file(4);
  const Fd read_only(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  Target target({[&](auto& c) {
    c.a = map_apart(12);
    for (size_t i = 0; i < 12; i++) touch(c.a, i, 1);
    void* at = reinterpret_cast<void*>(c.a + 4 * kPageSize);
    if (::mmap(at, 4 * kPageSize, PROT_READ, MAP_SHARED | MAP_FIXED, read_only.get(), 0) != at) ::_exit(3);
  }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const auto untrackable = tracker.track({pages_at(base, 8, 4), pages_at(base, 0, 4), pages_at(base, 4, 4)});
  ASSERT_TRUE(untrackable.ok()) << untrackable.error().message();
  EXPECT_THAT(*&untrackable.value(), ElementsAre(pages_at(base, 4, 4)));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 4)), base), count_up(4));
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 8, 4)), base), ElementsAre(8, 9, 10, 11));
}

TEST_F(WpTrackerTest, ADeadTargetIsToldFromAnIdleOne) {
  Target target({[](auto& c) {
    c.a = map_apart(16);
    touch(c.a, 1, 1);
  }});
  WpTracker tracker = make(target);
  target.run(0);
  const AddressRange range = pages_at(target.control().a, 0, 16);
  track(tracker, range);
  target.kill();
  EXPECT_EQ(tracker.collect(range).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(tracker.survey(range).error().kind, ErrorKind::kTargetGone);
  EXPECT_EQ(tracker.track({range}).error().kind, ErrorKind::kTargetGone);
}

TEST_F(WpTrackerTest, AFragmentedScanIsTheSameInPartsAndInOne) {
  constexpr size_t kPages = 65536;
  Target target({[](auto& c) {
    c.a = map_pages(kPages);
    ::madvise(reinterpret_cast<void*>(c.a.load()), kPages * kPageSize, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < kPages; i += 2) touch(c.a, i, 1);
  }});
  WpTracker tracker = make(target, 2);
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

TEST_F(WpTrackerTest, ReleasingLeavesTheTargetAsItWas) {
  Target target({[](auto& c) {
                   c.a = map_apart(32);
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   for (size_t i = 0; i < 32; i++) touch(c.a, i, 2);
                 }});
  const uint64_t base = [&] {
    WpTracker tracker = make(target);
    target.run(0);
    track(tracker, pages_at(target.control().a, 0, 32));
    collect(tracker, pages_at(target.control().a, 0, 32));
    return target.control().a.load();
  }();
  target.run(1);
  EXPECT_EQ(target.read(pages_at(base, 31, 1))[0], std::byte{2});
  WpTracker again = make(target);  // a second engine may come
  track(again, pages_at(base, 0, 32));
  EXPECT_EQ(all_of(collect(again, pages_at(base, 0, 32)), base), count_up(32));
}

TEST_F(WpTrackerTest, TheLastPassTellsWrittenAndAbsentPagesOnly) {
  const Fd file = make_file(16);
  Target target({[&](auto& c) {
                   c.a = map_apart(64);
                   c.b = map_apart(16, MAP_PRIVATE, file.get());
                   for (size_t i = 0; i < 48; i++) touch(c.a, i, 1);
                   for (size_t i = 0; i < 16; i++) touch(c.b, i, 1);
                 },
                 [](auto& c) {
                   ::madvise(reinterpret_cast<void*>(c.a + 8 * kPageSize), 2 * kPageSize, MADV_DONTNEED);
                   ::madvise(reinterpret_cast<void*>(c.b + 3 * kPageSize), kPageSize, MADV_DONTNEED);
                   touch(c.a, 9, 2);
                   touch(c.a, 20, 2);
                   touch(c.b, 5, 2);
                 }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t anon = target.control().a, mapped = target.control().b;
  track(tracker, pages_at(anon, 0, 64));
  track(tracker, pages_at(mapped, 0, 16));
  collect(tracker, pages_at(anon, 0, 64));
  collect(tracker, pages_at(mapped, 0, 16));
  target.run(1);
  const auto written = [](const PageRun& run) { return run.present && run.written && !run.file; };
  const auto absent = [](const PageRun& run) { return !run.present; };
  for (int twice = 0; twice < 2; twice++) {  // it changes nothing
    const PageRuns a = tracker.last_pass(pages_at(anon, 0, 64)).take();
    EXPECT_THAT(pages_of(a, anon, written), ElementsAre(9, 20));
    PageList holes = count_up(64);
    holes.erase(holes.begin(), holes.begin() + 48);
    holes.insert(holes.begin(), 8);
    EXPECT_EQ(pages_of(a, anon, absent), holes);
    const PageRuns b = tracker.last_pass(pages_at(mapped, 0, 16)).take();
    EXPECT_THAT(pages_of(b, mapped, written), ElementsAre(5));
    EXPECT_THAT(pages_of(b, mapped, absent), ElementsAre(3));
  }
  EXPECT_THAT(all_of(collect(tracker, pages_at(anon, 0, 64)), anon), ElementsAre(9, 20));
}

TEST_F(WpTrackerTest, TheLastPassKnowsWhatAFailedCollectCleared) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   touch(c.a, 4, 2);
                   map_pages(8, MAP_PRIVATE | MAP_ANONYMOUS, -1, c.a + 32 * kPageSize);
                   touch(c.a, 33, 2);
                 }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, 64);
  track(tracker, range);
  collect(tracker, range);
  target.run(1);
  expect_retry(tracker, range);
  const auto written = [](const PageRun& run) { return run.present && run.written; };
  EXPECT_THAT(pages_of(tracker.last_pass(range).take(), base, written), ElementsAre(4, 33));
  EXPECT_THAT(pages_of(survey(tracker, range), base, written), ElementsAre(4, 33));
  EXPECT_EQ(all_of(survey(tracker, range), base).size(), 57u);
}

TEST_F(WpTrackerTest, TheLastPassSeesADroppedHugePageAsAbsent) {
  Target target({[](auto& c) {
                   c.a = map_pages(1536);
                   c.b = (c.a + 2_MiB - 1) & ~(2_MiB - 1);
                   ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_HUGEPAGE);
                   std::memset(reinterpret_cast<void*>(c.b.load()), 1, 2_MiB);
                 },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_DONTNEED); }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().b;
  const AddressRange range = pages_at(base, 0, 512);
  track(tracker, range);
  collect(tracker, range);
  EXPECT_THAT(tracker.last_pass(range).take(), IsEmpty());
  target.run(1);
  const PageRuns runs = tracker.last_pass(range).take();
  EXPECT_EQ(pages_of(runs, base, [](const PageRun& run) { return !run.present; }), count_up(512));
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

}  // namespace
}  // namespace godwit::uffd
