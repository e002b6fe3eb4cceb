#include "engine/base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace godwit {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return fail(ErrorKind::kUsage, "half", std::to_string(n), "give an even number");
  return n / 2;
}
Result<int> quarter(int n) {
  return TRY(half(TRY(half(n))));
}
Status nothing(int n) {
  TRY(half(n));
  return {};
}

TEST(Result, TryUnwrapsOrReturnsTheError) {
  EXPECT_EQ(quarter(8).take(), 2);
  EXPECT_EQ(quarter(6).error().subject, "3");
  EXPECT_TRUE(nothing(2).ok());
  EXPECT_EQ(nothing(1).error().kind, ErrorKind::kUsage);
}

TEST(Result, MovesItsValue) {
  Result<std::unique_ptr<int>> held = std::make_unique<int>(7);
  const std::unique_ptr<int> taken = held.take();
  EXPECT_EQ(*taken, 7);
}

TEST(Error, KindFollowsFromErrno) {
  EXPECT_EQ(fail_errno("kill", "pid 1", ESRCH).kind, ErrorKind::kTargetGone);
  EXPECT_EQ(fail_errno("kill", "pid 1", EPERM).kind, ErrorKind::kDenied);
  EXPECT_EQ(fail_errno("send", "peer", ECONNRESET).kind, ErrorKind::kPeerGone);
  EXPECT_EQ(fail_errno("write", "image", ENOSPC).kind, ErrorKind::kSystem);
}

TEST(Error, MessageSaysWhatOnWhatWhyAndWhatToDo) {
  Error error = fail_errno("open", "/x", ENOENT);
  error.remedy = "create it";
  EXPECT_EQ(error.message(), "open on /x: No such file or directory (create it)");
}

}  // namespace
}  // namespace godwit
