#include "engine/state/layout_plan.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>
#include <random>

namespace godwit::state {
namespace {

using Kind = LayoutStep::Kind;

Vma anonymous(uint64_t start, uint64_t end, int prot = PROT_READ | PROT_WRITE, std::string flags = {}) {
  Vma vma;
  vma.range = range_of(start, end);
  vma.prot = prot;
  vma.kind = VmaKind::kAnonymous;
  vma.flags = std::move(flags);
  return vma;
}
Vma file(uint64_t start, uint64_t end, uint64_t offset, uint64_t inode) {
  Vma vma = anonymous(start, end);
  vma.kind = VmaKind::kFilePrivate;
  vma.offset = offset;
  vma.inode = inode;
  return vma;
}

TEST(LayoutPlan, NothingToDoForTheSame) {
  const Layout layout{anonymous(0x1000, 0x3000), file(0x5000, 0x8000, 0x1000, 7)};
  EXPECT_TRUE(plan_layout(layout, layout).empty());
}

TEST(LayoutPlan, AnotherMappingOfHugePagesAtTheSamePlaceIsMappedAnew) {
  Vma before = anonymous(0x200000, 0x600000);
  before.huge_page = kHugePageSize;
  before.inode = 7;
  Vma after = before;
  EXPECT_TRUE(plan_layout({before}, {after}).empty());
  after.inode = 8;
  EXPECT_EQ(plan_layout({before}, {after}),
            (std::vector<LayoutStep>{{Kind::kUnmap, before, {}}, {Kind::kMap, after, {}}}));
  Vma ordinary = before;
  ordinary.huge_page = 0;
  EXPECT_EQ(plan_layout({before}, {ordinary}),
            (std::vector<LayoutStep>{{Kind::kUnmap, before, {}}, {Kind::kMap, ordinary, {}}}));
}

TEST(LayoutPlan, GrowthMapsOnlyTheNewPartAndShrinkingUnmapsOnlyTheOld) {
  const auto grown = plan_layout({anonymous(0x1000, 0x3000)}, {anonymous(0x1000, 0x5000)});
  EXPECT_EQ(grown, (std::vector<LayoutStep>{{Kind::kMap, anonymous(0x3000, 0x5000), {}}}));
  const auto shrunk = plan_layout({file(0x1000, 0x5000, 0, 7)}, {file(0x2000, 0x5000, 0x1000, 7)});
  EXPECT_EQ(shrunk, (std::vector<LayoutStep>{{Kind::kUnmap, file(0x1000, 0x2000, 0, 7), {}}}));
}

TEST(LayoutPlan, AnotherFileOrOffsetReplaces) {
  const auto other = plan_layout({file(0x1000, 0x2000, 0, 7)}, {file(0x1000, 0x2000, 0, 8)});
  ASSERT_EQ(other.size(), 2u);
  EXPECT_EQ(other[0].kind, Kind::kUnmap);
  EXPECT_EQ(other[1].kind, Kind::kMap);
  EXPECT_EQ(plan_layout({file(0x1000, 0x2000, 0, 7)}, {file(0x1000, 0x2000, 0x1000, 7)}).size(), 2u);
}

TEST(LayoutPlan, AProtectionInTheMiddleKeepsThePages) {
  const auto steps = plan_layout(
      {anonymous(0x1000, 0x4000)},
      {anonymous(0x1000, 0x2000), anonymous(0x2000, 0x3000, PROT_READ), anonymous(0x3000, 0x4000)});
  EXPECT_EQ(steps, (std::vector<LayoutStep>{{Kind::kProtect, anonymous(0x2000, 0x3000, PROT_READ), {}}}));
}

TEST(LayoutPlan, AdviceIsComparedWithoutTrackingMarks) {
  const Vma before = anonymous(0x1000, 0x2000, PROT_READ, "rd mr sd");
  EXPECT_TRUE(plan_layout({before}, {anonymous(0x1000, 0x2000, PROT_READ, "rd mr uw sd")}).empty());
  const Vma advised = anonymous(0x1000, 0x2000, PROT_READ, "rd dc");
  EXPECT_EQ(plan_layout({before}, {advised}), (std::vector<LayoutStep>{{Kind::kAdvise, advised, ""}}));
}

/// Applies the steps to a page-by-page picture and compares with the layout wanted.
TEST(LayoutPlan, RandomLayoutsBecomeWhatWasWanted) {
  std::mt19937 random(3);
  const auto make = [&] {
    Layout layout;
    for (uint64_t at = 1; at < 60; at += random() % 5) {
      const uint64_t size = 1 + random() % 6;
      layout.push_back(random() % 2 ? anonymous(at << 12, (at + size) << 12, int(random() % 4))
                                    : file(at << 12, (at + size) << 12, (random() % 2) << 12, random() % 2));
      at += size;
    }
    return layout;
  };
  using Picture = std::map<uint64_t, std::tuple<VmaKind, int, uint64_t, uint64_t>>;
  const auto paint = [](Picture& picture, const Vma& vma) {
    for (uint64_t p = vma.range.start.value(); p < vma.range.end.value(); p += kPageSize) {
      const bool is_file = vma.kind == VmaKind::kFilePrivate;
      picture[p] = {vma.kind, vma.prot, is_file ? vma.offset + p - vma.range.start.value() : 0, vma.inode};
    }
  };
  const auto picture_of = [&](const Layout& layout) {
    Picture picture;
    for (const Vma& vma : layout) paint(picture, vma);
    return picture;
  };
  for (int i = 0; i < 500; ++i) {
    const Layout before = make(), after = make();
    Picture picture = picture_of(before);
    for (const LayoutStep& step : plan_layout(before, after)) {
      if (step.kind == Kind::kUnmap) {
        for (uint64_t p = step.area.range.start.value(); p < step.area.range.end.value(); p += kPageSize)
          picture.erase(p);
        continue;
      }
      if (step.kind == Kind::kMap) {
        EXPECT_EQ(picture.lower_bound(step.area.range.start.value()),
                  picture.lower_bound(step.area.range.end.value()));
      }
      if (step.kind != Kind::kAdvise) paint(picture, step.area);
    }
    ASSERT_EQ(picture, picture_of(after)) << "case " << i;
  }
}

}  // namespace
}  // namespace godwit::state
