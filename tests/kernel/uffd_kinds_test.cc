// What both trackers promise of the kinds of memory, of discards and of the last pass.
#include <gmock/gmock.h>
#include <linux/mman.h>

#include "engine/base/files.h"
#include "tests/kernel/uffd_tracker_fixture.h"

namespace godwit::uffd {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace): the fixture of this very file
using testing::ElementsAre;
using testing::IsEmpty;

TEST_P(AnyTrackerTest, ASparseMappingCostsNoPageTables) {
  Target target({[](auto& c) {
    c.a = reinterpret_cast<uint64_t>(::mmap(nullptr, uint64_t{64} << 30, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    touch(c.a, 12345, 1);
  }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

/// Huge pages of hugetlbfs for one test; all of them given back.
class HugePool {
 public:
  explicit HugePool(int pages) {
    before_ = number();
    set(before_ + pages);
    enough_ = number() >= before_ + pages;
  }
  ~HugePool() { set(before_); }
  HugePool(const HugePool&) = delete;
  HugePool& operator=(const HugePool&) = delete;
  [[nodiscard]] bool enough() const { return enough_; }

 private:
  static int number() {
    const auto text = read_file("/proc/sys/vm/nr_hugepages");
    return text.ok() ? std::atoi(text.value().c_str()) : 0;
  }
  static void set(int pages) { (void)write_file("/proc/sys/vm/nr_hugepages", std::to_string(pages)); }
  int before_ = 0;
  bool enough_ = false;
};

constexpr size_t kSmallPages = 512;  ///< in a huge one

/// KERNEL: what MemorySender::add_emptied() is for: a page that was discarded and read again looks clean.
TEST_F(WpTrackerTest, WritesToHugetlbfsShowByHugePagesAndDiscardsUntilTheyAreReadAgain) {
  const HugePool pool(3);
  if (!pool.enough()) GTEST_SKIP() << "no huge pages of 2048 kB can be reserved";
  Target target({[](auto& c) {
                   c.a = reinterpret_cast<uint64_t>(::mmap(nullptr, 3 * 2_MiB, PROT_READ | PROT_WRITE,
                                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
                   for (size_t i = 0; i < 3; i++) touch(c.a, i * kSmallPages, 1);
                 },
                 [](auto& c) { touch(c.a, kSmallPages + 7, 2); },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.a.load()), 2_MiB, MADV_DONTNEED); },
                 [](auto& c) { c.b = *reinterpret_cast<volatile char*>(c.a.load()); },
                 [](auto& c) { touch(c.a, 3, 3); }});
  WpTracker tracker = make(target);
  target.run(0);
  const uint64_t base = target.control().a;
  ASSERT_NE(base, reinterpret_cast<uint64_t>(MAP_FAILED));
  const AddressRange range = pages_at(base, 0, 3 * kSmallPages);
  const auto huge_page = [&](size_t i) {
    PageList pages = count_up(kSmallPages);
    for (uint64_t& page : pages) page += i * kSmallPages;
    return pages;
  };
  track(tracker, range);
  EXPECT_EQ(all_of(collect(tracker, range), base), count_up(3 * kSmallPages));
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  target.run(1);
  EXPECT_EQ(all_of(collect(tracker, range), base), huge_page(1));
  target.run(2);
  EXPECT_THAT(collect(tracker, range), IsEmpty());
  EXPECT_EQ(present_of(tracker.last_pass(range).take(), base), PageList());
  EXPECT_EQ(all_of(tracker.last_pass(range).take(), base), huge_page(0)) << "gone, and told as not present";
  target.run(3);
  EXPECT_THAT(collect(tracker, range), IsEmpty()) << "should it be told here, add_emptied() is not needed";
  EXPECT_THAT(tracker.last_pass(range).take(), IsEmpty());
  target.run(4);
  EXPECT_EQ(all_of(collect(tracker, range), base), huge_page(0));
  const Status part = tracker.unmark(pages_at(base, 0, 5));
  ASSERT_FALSE(part.ok());
  EXPECT_EQ(part.error().kind, ErrorKind::kRetry) << "whoever asks for a part knows an older layout";
}

TEST_P(AnyTrackerTest, ADiscardShowsOnlyInTheSurvey) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   ::madvise(reinterpret_cast<void*>(c.a + 8 * kPageSize), 16 * kPageSize, MADV_DONTNEED);
                 },
                 [](auto& c) { touch(c.a, 10, 3); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

TEST_P(AnyTrackerTest, ADiscardedHugePageShowsOnlyInTheSurvey) {
  Target target({[](auto& c) {
                   c.a = map_pages(1536);
                   c.b = (c.a + 2_MiB - 1) & ~(2_MiB - 1);
                   ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_HUGEPAGE);
                   std::memset(reinterpret_cast<void*>(c.b.load()), 1, 2_MiB);
                 },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_DONTNEED); },
                 [](auto& c) { touch(c.b, 3, 7); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

TEST_P(AnyTrackerTest, GuardPagesStayGuards) {
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
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

TEST_P(AnyTrackerTest, UntrackableRangesComeBackAndTheirNeighboursAreTracked) {
  const Fd file = make_file(4);
  const Fd read_only(::open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  Target target({[&](auto& c) {
    c.a = map_apart(12);
    for (size_t i = 0; i < 12; i++) touch(c.a, i, 1);
    void* at = reinterpret_cast<void*>(c.a + 4 * kPageSize);
    if (::mmap(at, 4 * kPageSize, PROT_READ, MAP_SHARED | MAP_FIXED, read_only.get(), 0) != at) ::_exit(3);
  }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t base = target.control().a;
  const auto untrackable = tracker.track({pages_at(base, 8, 4), pages_at(base, 0, 4), pages_at(base, 4, 4)});
  ASSERT_TRUE(untrackable.ok()) << untrackable.error().message();
  EXPECT_THAT(*&untrackable.value(), ElementsAre(pages_at(base, 4, 4)));
  EXPECT_EQ(all_of(collect(tracker, pages_at(base, 0, 4)), base), count_up(4));
  EXPECT_THAT(all_of(collect(tracker, pages_at(base, 8, 4)), base), ElementsAre(8, 9, 10, 11));
}

TEST_P(AnyTrackerTest, TheLastPassTellsWrittenAndAbsentPagesOnly) {
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
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  const uint64_t anon = target.control().a, mapped = target.control().b;
  track(tracker, pages_at(anon, 0, 64));
  if (tracks_files()) track(tracker, pages_at(mapped, 0, 16));
  collect(tracker, pages_at(anon, 0, 64));
  if (tracks_files()) collect(tracker, pages_at(mapped, 0, 16));
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
    if (!tracks_files()) continue;
    const PageRuns b = tracker.last_pass(pages_at(mapped, 0, 16)).take();
    EXPECT_THAT(pages_of(b, mapped, written), ElementsAre(5));
    EXPECT_THAT(pages_of(b, mapped, absent), ElementsAre(3));
  }
  EXPECT_THAT(all_of(collect(tracker, pages_at(anon, 0, 64)), anon), ElementsAre(9, 20));
}

TEST_P(AnyTrackerTest, TheLastPassKnowsWhatAFailedCollectCleared) {
  Target target({[](auto& c) {
                   c.a = map_apart(64);
                   for (size_t i = 0; i < 64; i++) touch(c.a, i, 1);
                 },
                 [](auto& c) {
                   touch(c.a, 4, 2);
                   map_pages(8, MAP_PRIVATE | MAP_ANONYMOUS, -1, c.a + 32 * kPageSize);
                   touch(c.a, 33, 2);
                 }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

TEST_P(AnyTrackerTest, TheLastPassSeesADroppedHugePageAsAbsent) {
  Target target({[](auto& c) {
                   c.a = map_pages(1536);
                   c.b = (c.a + 2_MiB - 1) & ~(2_MiB - 1);
                   ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_HUGEPAGE);
                   std::memset(reinterpret_cast<void*>(c.b.load()), 1, 2_MiB);
                 },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.b.load()), 2_MiB, MADV_DONTNEED); }});
  const auto owner = make(target);
  DirtyTracker& tracker = *owner;
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

GODWIT_FOR_BOTH_TRACKERS(AnyTrackerTest);

}  // namespace
}  // namespace godwit::uffd
