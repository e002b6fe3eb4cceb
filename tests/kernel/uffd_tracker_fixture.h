// What the tracker tests share: a tracker on a Target, and runs as page numbers.
#pragma once

#include <gmock/gmock.h>

#include "engine/base/kernel_features.h"
#include "tests/kernel/uffd_target.h"
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
    ASSERT_THAT(*untrackable, testing::IsEmpty());
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

inline Fd make_file(size_t pages) {
  Fd fd(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(fd.valid());
  const std::vector<char> text(kPageSize, 'f');
  for (size_t i = 0; i < pages; i++)
    EXPECT_EQ(::write(fd.get(), text.data(), text.size()), ssize_t{kPageSize});
  return fd;
}

}  // namespace godwit::uffd::test
