// The log of writes against the kernel's own marks: whatever PAGEMAP_SCAN calls written must be in the log,
// or the log must say that it is blind.
#include <map>
#include <random>
#include <thread>

#include "ebpf/write_log.h"
#include "tests/kernel/uffd_tracker_fixture.h"

namespace godwit::ebpf {
namespace {

using namespace uffd::test;  // NOLINT(google-build-using-namespace): the fixture
using uffd::WpTracker;

constexpr size_t kPages = 4096;

struct Access {
  uint64_t base;
  void store(size_t page) const { touch(base, page, static_cast<uint8_t>(page)); }
  /// By the kernel.
  void read_into(size_t page) const {
    const Fd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
    // Fewer when it was stopped meanwhile.
    if (::read(zero.get(), reinterpret_cast<void*>(base + page * kPageSize + 64), 5000) <= 0) ::_exit(3);
  }
};

class WriteLogTest : public WpTrackerTest {
 protected:
  void SetUp() override {
    WpTrackerTest::SetUp();
    auto possible = FaultLog::create(::getpid());
    if (!possible.ok()) GTEST_SKIP() << possible.error().message();
  }

  /// A target with kPages tracked pages, every other one populated, and a log that hears it.
  void begin(Target& target) {
    auto log = FaultLog::create(target.pid());
    ASSERT_TRUE(log.ok()) << log.error().message();
    log_ = log.take();
    target.run(0);
    range_ = pages_at(target.control().a, 0, kPages);
    tracker_.emplace(make(target));
    track(*tracker_, range_);
  }
  void mark() {
    const Status marked = log_->mark();
    ASSERT_TRUE(marked.ok()) << marked.error().message();
    collect(*tracker_, range_);
  }
  WrittenSince ask() {
    auto written = log_->since_mark();
    EXPECT_TRUE(written.ok()) << (written.ok() ? "" : written.error().message());
    return written.ok() ? written.take() : WrittenSince{};
  }
  /// Whether the sender will look there.
  static bool is_told(const WrittenSince& told, RemoteAddr page) { return contains(told.around, page); }
  static bool contains(const std::vector<AddressRange>& ranges, RemoteAddr page) {
    return std::any_of(ranges.begin(), ranges.end(),
                       [&](AddressRange range) { return range.contains(page); });
  }
  /// How many pages the kernel says were written; each must be told.
  size_t expect_all_told(const WrittenSince& told, bool to_the_page = true) {
    size_t written = 0;
    EXPECT_TRUE(told.pages);
    auto runs = tracker_->last_pass(range_);
    EXPECT_TRUE(runs.ok());
    for (const PageRun& run : *runs) {
      if (!run.present) continue;
      for (RemoteAddr at = run.range.start; at < run.range.end; at = at + kPageSize, ++written)
        EXPECT_TRUE(to_the_page ? contains(*told.pages, at) : is_told(told, at))
            << fmt::format("{}", at) << " was written and is not in the log";
    }
    return written;
  }

  std::unique_ptr<FaultLog> log_;
  std::optional<WpTracker> tracker_;
  AddressRange range_;
};

void stop(pid_t pid) {
  ::kill(pid, SIGSTOP);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status));
}

void map_half(Target::Control& c, int advice = MADV_NOHUGEPAGE) {
  c.a = map_apart(kPages);
  ::madvise(reinterpret_cast<void*>(c.a.load()), kPages * kPageSize, advice);
  for (size_t i = 0; i < kPages; i += 2) touch(c.a, i, 1);
}

TEST_F(WriteLogTest, HearsProgramAndKernelAndForgetsBeforeTheMark) {
  Target target({[](auto& c) { map_half(c); }, [](auto& c) { Access{c.a}.store(100); },
                 [](auto& c) {
                   Access{c.a}.store(200);
                   Access{c.a}.store(301);  // was missing
                   Access{c.a}.read_into(400);
                 }});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  mark();
  target.run(1);
  mark();
  target.run(2);
  const WrittenSince told = ask();
  EXPECT_EQ(told.blind, "");
  EXPECT_EQ(expect_all_told(told), 4u);
  const uint64_t base = target.control().a;
  EXPECT_FALSE(is_told(told, RemoteAddr(base + 4000 * kPageSize)));
  uint64_t pages = 0;
  for (const AddressRange& range : told.around) pages += intersect(range, range_).pages();
  EXPECT_LE(pages, 1024u) << "what was written lies in two huge pages";
}

TEST_F(WriteLogTest, GuidesToEachPageOnceAndNotToTooMany) {
  Target target({[](auto& c) { map_half(c); },
                 [](auto& c) {
                   Access{c.a}.store(200);
                   Access{c.a}.store(202);
                   Access{c.a}.store(203);  // was missing
                   Access{c.a}.read_into(400);
                 },
                 [](auto&) {},
                 [](auto& c) {
                   for (size_t i = 0; i < 40; i++) Access{c.a}.store(2 * i);
                 }});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  collect(*tracker_, range_);
  (void)log_->heard(SIZE_MAX);
  const auto heard = [&](size_t most) {
    auto pages = log_->heard(most);
    if (pages) std::erase_if(*pages, [&](AddressRange page) { return !page.overlaps(range_); });
    return pages;
  };
  target.run(1);
  const std::vector<AddressRange> expected = {pages_at(range_.start.value(), 200, 1),
                                              pages_at(range_.start.value(), 202, 2),
                                              pages_at(range_.start.value(), 400, 2)};
  EXPECT_EQ(heard(1000), expected);
  target.run(2);
  EXPECT_EQ(heard(1000), std::vector<AddressRange>());
  target.run(3);
  EXPECT_EQ(heard(39), std::nullopt);
  EXPECT_EQ(heard(1000), std::vector<AddressRange>()) << "what was too much is not told later";
}

TEST_F(WriteLogTest, IsBlindToWhatIsNoFaultAndSaysSo) {
  Target target({[](auto& c) { map_half(c); },
                 [](auto& c) { ::madvise(reinterpret_cast<void*>(c.a + 4096 * 8), 4096, MADV_DONTNEED); },
                 [](auto& c) { c.b = map_apart(4); },
                 [](auto& c) { ::munmap(reinterpret_cast<void*>(c.b.load()), 4096); },
                 [](auto& c) {  // pages are written without a fault
                   const iovec from{reinterpret_cast<void*>(c.a.load()), 64};
                   const iovec to{reinterpret_cast<void*>(c.a + 4096 * 1000), 64};
                   if (::process_vm_writev(::getpid(), &from, 1, &to, 1, 0) != 64) ::_exit(3);
                 },
                 [](auto&) {}});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  for (int step = 1; step <= 4; ++step) {
    mark();
    target.run(step);
    EXPECT_NE(ask().blind, "") << "step " << step;
  }
  mark();
  target.run(5);
  EXPECT_EQ(ask().blind, "");
}

TEST_F(WriteLogTest, ASleepThatWasInterruptedDoesNotBlindIt) {
  Target target({[](auto& c) { map_half(c); },
                 [](auto& c) {
                   c.b = 1;
                   ::usleep(100'000);
                   c.b = 2;
                 }});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  mark();
  std::thread sleeper([&] { target.run(1); });
  while (target.control().b.load() == 0) ::usleep(100);
  ::usleep(10'000);  // into the sleep
  stop(target.pid());
  ::kill(target.pid(), SIGCONT);
  sleeper.join();
  EXPECT_EQ(ask().blind, "");
}

TEST_F(WriteLogTest, SomebodyElseReachingInBlindsItAndWeDoNot) {
  Target target({[](auto& c) { map_half(c); }, [](auto&) {}});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  mark();
  target.read(pages_at(target.control().a, 0, 64));
  EXPECT_EQ(ask().blind, "");
  const pid_t other = ::fork();
  if (other == 0) {
    char byte = 1;
    const iovec local{&byte, 1};
    const iovec remote{reinterpret_cast<void*>(range_.start.value()), 1};
    ::_exit(::process_vm_writev(target.pid(), &local, 1, &remote, 1, 0) == 1 ? 0 : 1);
  }
  int status = -1;
  ::waitpid(other, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_NE(ask().blind, "");
}

TEST_F(WriteLogTest, IsBlindWhenMoreIsWrittenThanItHolds) {
  Target target({[](auto& c) { map_half(c); },
                 [](auto& c) {  // each write is a fault: the page was given back before
                   for (int i = 0; i < 70; ++i) {
                     for (size_t page = 0; page < kPages; ++page) touch(c.a, page, 2);
                     ::madvise(reinterpret_cast<void*>(c.a.load()), kPages * kPageSize, MADV_DONTNEED);
                   }
                 }});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  mark();
  target.run(1);
  EXPECT_NE(ask().blind, "");
}

/// Writers that never pause, stopped at any instant, hundreds of times: the case that the migration is.
void write_without_end(uint64_t base, unsigned seed) {
  std::mt19937 random(seed);
  const Access access{base};
  for (;;) {
    const size_t page = random() % (kPages - 2);
    if (random() % 8 == 0)
      access.read_into(page);
    else
      access.store(page);
    if (random() % 64 == 0) ::usleep(50);
  }
}

class WriteLogStress : public WriteLogTest, public testing::WithParamInterface<int> {};

TEST_P(WriteLogStress, MissesNothing) {
  const int advice = GetParam();
  Target target({[advice](auto& c) { map_half(c, advice); },
                 [](auto& c) {
                   for (unsigned i = 0; i < 3; ++i) std::thread(write_without_end, c.a.load(), i).detach();
                 }});
  ASSERT_NO_FATAL_FAILURE(begin(target));
  target.run(1);
  size_t written = 0;
  std::map<std::string, int> blind;  // how often, by reason
  for (int i = 0; i < 2000 && !HasFailure(); ++i) {
    mark();
    ::usleep(static_cast<useconds_t>(i % 20) * 20);
    stop(target.pid());
    const WrittenSince told = ask();
    if (told.blind.empty())
      written += expect_all_told(told, advice == MADV_NOHUGEPAGE);
    else
      ++blind[told.blind];
    ::kill(target.pid(), SIGCONT);
  }
  EXPECT_GT(written, 1000u) << "it is hardly of use: " << testing::PrintToString(blind);
}
INSTANTIATE_TEST_SUITE_P(Pages, WriteLogStress, testing::Values(MADV_NOHUGEPAGE, MADV_HUGEPAGE),
                         [](const auto& of) { return of.param == MADV_HUGEPAGE ? "Huge" : "Small"; });

}  // namespace
}  // namespace godwit::ebpf
