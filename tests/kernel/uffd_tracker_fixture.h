// What the tracker tests share: a tracker on a Target, and runs as page numbers.
#pragma once

#include <gmock/gmock.h>

#include "engine/base/kernel_features.h"
#include "tests/kernel/uffd_target.h"
#include "uffd/areas.h"
#include "uffd/sync_tracker.h"
#include "uffd/wp_tracker.h"

namespace godwit::uffd::test {

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
inline PageList all_of(const PageRuns& runs, uint64_t base) {
  return pages_of(runs, base, [](const PageRun&) { return true; });
}
inline PageList present_of(const PageRuns& runs, uint64_t base) {
  return pages_of(runs, base, [](const PageRun& run) { return run.present; });
}
inline PageList count_up(uint64_t n) {
  PageList pages(n);
  for (uint64_t i = 0; i < n; i++) pages[i] = i;
  return pages;
}

enum class Kind : uint8_t { kUffd, kUffdSync };

inline std::string name_of(Kind kind) {
  return kind == Kind::kUffd ? "Uffd" : "UffdSync";
}

/// Either tracker on a fresh userfaultfd of the target.
inline std::unique_ptr<DirtyTracker> make_tracker(Kind kind, Target& target, unsigned threads = 2) {
  std::unique_ptr<DirtyTracker> made;
  if (kind == Kind::kUffdSync) {
    auto tracker = SyncTracker::create(target.pid(), target.make_uffd(), threads);
    EXPECT_TRUE(tracker.ok()) << (tracker.ok() ? "" : tracker.error().message());
    made = tracker.take();
  } else {
    auto tracker = WpTracker::create(target.pid(), target.make_uffd(), threads);
    EXPECT_TRUE(tracker.ok()) << (tracker.ok() ? "" : tracker.error().message());
    made = std::make_unique<WpTracker>(tracker.take());
  }
  return made;
}

class TrackerTest : public testing::Test {
 protected:
  static void skip_without(Kind kind) {
    if (kind == Kind::kUffd && !kernel_features().tracks_async())
      GTEST_SKIP() << "this kernel has no UFFD_FEATURE_WP_ASYNC or no PAGEMAP_SCAN";
    if (kind == Kind::kUffdSync && !kernel_features().uffd_wp_sync)
      GTEST_SKIP() << "this kernel has no userfaultfd write-protection that pagemap shows";
  }
  static void track(DirtyTracker& tracker, AddressRange range) {
    auto untrackable = tracker.track({range});
    ASSERT_TRUE(untrackable.ok()) << untrackable.error().message();
    ASSERT_THAT(*untrackable, testing::IsEmpty());
  }
  static PageRuns collect(DirtyTracker& tracker, AddressRange range) {
    auto runs = tracker.collect(range);
    EXPECT_TRUE(runs.ok()) << (runs.ok() ? "" : runs.error().message());
    return runs.ok() ? runs.take() : PageRuns{};
  }
  static PageRuns survey(DirtyTracker& tracker, AddressRange range) {
    auto runs = tracker.survey(range);
    EXPECT_TRUE(runs.ok()) << (runs.ok() ? "" : runs.error().message());
    return runs.ok() ? runs.take() : PageRuns{};
  }
  static void expect_retry(DirtyTracker& tracker, AddressRange range) {
    const auto runs = tracker.collect(range);
    ASSERT_FALSE(runs.ok());
    EXPECT_EQ(runs.error().kind, ErrorKind::kRetry) << runs.error().message();
  }
};

/// What holds for the asynchronous tracker.
class WpTrackerTest : public TrackerTest {
 protected:
  void SetUp() override { skip_without(Kind::kUffd); }
  static WpTracker make(Target& target, unsigned threads = 2) {
    auto tracker = WpTracker::create(target.pid(), target.make_uffd(), threads);
    EXPECT_TRUE(tracker.ok()) << (tracker.ok() ? "" : tracker.error().message());
    return tracker.take();
  }
};

/// What holds for both.
class AnyTrackerTest : public TrackerTest, public testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override { skip_without(GetParam()); }
  static std::unique_ptr<DirtyTracker> make(Target& target, unsigned threads = 2) {
    return make_tracker(GetParam(), target, threads);
  }
  /// Files and shared memory can be tracked.
  static bool tracks_files() { return GetParam() == Kind::kUffd; }
};
inline std::string name_of_param(const testing::TestParamInfo<Kind>& info) {
  return name_of(info.param);
}
#define GODWIT_FOR_BOTH_TRACKERS(suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Trackers, suite,                                                       \
                           testing::Values(uffd::test::Kind::kUffd, uffd::test::Kind::kUffdSync), \
                           uffd::test::name_of_param)

inline Fd make_file(size_t pages) {
  Fd fd(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(fd.valid());
  const std::vector<char> text(kPageSize, 'f');
  for (size_t i = 0; i < pages; i++)
    EXPECT_EQ(::write(fd.get(), text.data(), text.size()), ssize_t{kPageSize});
  return fd;
}

}  // namespace godwit::uffd::test
