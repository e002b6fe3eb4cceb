// What the last look at the layout may rely on, and what it must look at again.
#include "engine/migration/layout_watch.h"

#include <gtest/gtest.h>

#include "ebpf/write_log.h"
#include "tests/kernel/uffd_tracker_fixture.h"

namespace godwit::migration {
namespace {

using namespace uffd::test;  // NOLINT(google-build-using-namespace): its target

constexpr size_t kPages = 16;

const Vma& area_of(const Layout& layout, Target& target) {
  const Vma* area = find_vma(layout, RemoteAddr(target.control().a));
  CHECK(area != nullptr);
  return *area;
}

void* area_in(Target::Control& c) {
  return reinterpret_cast<void*>(c.a.load());
}

/// By plain calls: with an address sanitizer, mlock() does nothing.
std::vector<Target::Step> steps() {
  return {[](auto& c) { c.a = map_apart(kPages); },
          [](auto& c) { ::syscall(SYS_mlock, area_in(c), kPages * kPageSize); },
          [](auto& c) { ::syscall(SYS_munlock, area_in(c), kPages * kPageSize); },
          [](auto& c) { c.b = map_apart(1); }};
}

TEST(LayoutWatch, SeesInTheFreezeThatALockIsGone) {
  Target target(steps());
  target.run(0);
  target.run(1);
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  LayoutWatch watch(*process);
  const Layout before = watch.in_detail(nullptr).take();
  EXPECT_TRUE(area_of(before, target).has_flag("lo"));
  target.run(2);
  EXPECT_TRUE(area_of(watch.look(before, nullptr).value(), target).has_flag("lo"))
      << "the cheap look cannot tell";
  EXPECT_FALSE(area_of(watch.look_frozen(before, nullptr).value(), target).has_flag("lo"));
}

TEST(LayoutWatch, LooksAgainWhenTheLogHeardOfAChange) {
  Target target(steps());
  target.run(0);
  auto log = ebpf::FaultLog::create(target.pid());
  if (!log.ok()) GTEST_SKIP() << log.error().message();
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  LayoutWatch watch(*process);
  const Layout before = watch.in_detail(log->get()).take();
  EXPECT_TRUE(watch.knows_details(log->get()));
  EXPECT_EQ(watch.look(before, log->get()).value(), before);
  target.run(3);
  EXPECT_FALSE(watch.knows_details(log->get()));
  EXPECT_NE(watch.look(before, log->get()).value(), before);
}

}  // namespace
}  // namespace godwit::migration
