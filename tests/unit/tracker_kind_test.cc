// --tracker: which one is used on which kernel.
#include "engine/migration/tracker_kind.h"

#include <gtest/gtest.h>

namespace godwit::migration {
namespace {

KernelFeatures kernel(bool async, bool scan, bool sync) {
  KernelFeatures features;
  features.uffd_wp_async = async;
  features.pagemap_scan = scan;
  features.uffd_wp_sync = sync;
  return features;
}

const KernelFeatures kNew = kernel(true, true, true), kOld = kernel(false, false, true),
                     kHalf = kernel(true, false, true), kAncient = kernel(false, false, false);

TEST(ChooseTracker, AutoTakesTheFirstThatTheKernelHas) {
  EXPECT_EQ(choose_tracker(TrackerKind::kAuto, kNew).value(), TrackerKind::kUffd);
  EXPECT_EQ(choose_tracker(TrackerKind::kAuto, kOld).value(), TrackerKind::kUffdSync);
  EXPECT_EQ(choose_tracker(TrackerKind::kAuto, kHalf).value(), TrackerKind::kUffdSync);
  EXPECT_EQ(choose_tracker(TrackerKind::kAuto, kAncient).error().kind, ErrorKind::kUnsupported);
}

TEST(ChooseTracker, AWishIsGrantedOrRefusedWithARemedy) {
  EXPECT_EQ(choose_tracker(TrackerKind::kUffdSync, kNew).value(), TrackerKind::kUffdSync);
  EXPECT_EQ(choose_tracker(TrackerKind::kUffd, kNew).value(), TrackerKind::kUffd);
  EXPECT_EQ(choose_tracker(TrackerKind::kEbpf, kNew).value(), TrackerKind::kUffd);
  for (const TrackerKind wish : {TrackerKind::kUffd, TrackerKind::kEbpf}) {
    const auto refused = choose_tracker(wish, kOld);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().kind, ErrorKind::kUnsupported);
    EXPECT_NE(refused.error().message().find("uffd-sync"), std::string::npos);
  }
  EXPECT_FALSE(choose_tracker(TrackerKind::kUffdSync, kAncient).ok());
}

TEST(ChooseTracker, TheProbeRequiresOneOfThem) {
  const auto required = [](const KernelFeatures& features) {
    for (const KernelFeature& feature : features.list()) {
      if (feature.name == "uffd-wp-sync") return feature.required;
    }
    return false;
  };
  EXPECT_FALSE(required(kNew));
  EXPECT_TRUE(required(kOld));
  EXPECT_TRUE(required(kAncient));
}

}  // namespace
}  // namespace godwit::migration
