#include "engine/base/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace godwit {
namespace {

TEST(Files, ReadsProcAndReportsAGoneProcess) {
  EXPECT_TRUE(read_file("/proc/self/status").ok());
  EXPECT_EQ(read_file("/proc/4194999/status").error().kind, ErrorKind::kTargetGone);
}

TEST(Files, TakesLinesApart) {
  EXPECT_THAT(split("a  b c", ' '), testing::ElementsAre("a", "b", "c"));
  EXPECT_EQ(field("Name:\tx y\nUmask:\t0022\n", "Umask:"), "0022");
  EXPECT_EQ(field("Name:\tx\n", "Umask:"), std::nullopt);
  EXPECT_EQ(parse_number("1f", 16), 31u);
  EXPECT_EQ(parse_number("12x"), std::nullopt);
  EXPECT_EQ(parse_number(""), std::nullopt);
}

}  // namespace
}  // namespace godwit
