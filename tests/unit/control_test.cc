// The control protocol and what its wishes do, without a socket and without a process.
#include "engine/migration/control.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/migration/control_protocol.h"

namespace godwit::migration {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

class ControlTest : public testing::Test {
 protected:
  std::string serve(std::string_view line) { return migration::serve(control_, line); }
  void begin_bulk() {
    control_.publish([](Statistics& s) {
      s.state = JobState::kActive;
      s.round_pages = 1000;
    });
  }
  void attach() {
    control_.set_link(
        {[] { return uint64_t{4096} * 600; }, [this](uint64_t rate) { rate_ = rate; }, [this] { ++cuts_; }});
  }

  std::atomic<bool> signalled_ = false;
  Control control_{4711, Limits{}, 0, &signalled_};
  uint64_t rate_ = 1;
  int cuts_ = 0;
};

TEST_F(ControlTest, NonsenseIsAnsweredAndDoesNothing) {
  const std::string long_line = R"({"execute": "cancel", "x": ")" + std::string(kMaxRequest, 'x') + "\"}";
  const std::string deep(kMaxRequest, '[');
  for (const std::string_view line :
       {std::string_view(""), std::string_view("cancel"), std::string_view("{"), std::string_view("[]"),
        std::string_view("{}"), std::string_view("null"), std::string_view(R"({"execute": 1})"),
        std::string_view(R"({"execute": "quit"})"),
        std::string_view(R"({"execute": "cancel"} {"execute": "cancel"})"),
        std::string_view(R"({"execute": "cancel", "arguments": []})"),
        std::string_view(R"({"execute": "cancel", "arguments": {"now": 1}})"),
        std::string_view("\xff\xfe\0\x01", 4), std::string_view(long_line), std::string_view(deep)}) {
    const std::string answer = serve(line);
    EXPECT_THAT(answer, HasSubstr("\"error\"")) << line.substr(0, 50);
    const auto parsed = parse_answer(answer);
    ASSERT_FALSE(parsed.ok());
    EXPECT_EQ(parsed.error().kind, ErrorKind::kUsage) << answer;
  }
  EXPECT_TRUE(control_.check().ok());
}

TEST_F(ControlTest, AWrongArgumentChangesNothingAtAll) {
  for (const char* wrong :
       {R"("max-bandwidth": -1)", R"("max-bandwidth": 1.5)", R"("max-bandwidth": "1M")",
        R"("max-bandwidth": 1e30)", R"("downtime-limit": -1)", R"("downtime-limit": 1e300)",
        R"("max-rounds": 1)", R"("max-rounds": 1000001)", R"("on-timeout": "later")", R"("on-timeout": 1)",
        R"("auto-converge": 1)", R"("cpu-throttle-initial": 0)", R"("cpu-throttle-increment": 100)",
        R"("max-cpu-throttle": 100)", R"("dirty-limit": null)", R"("speed": 1)"}) {
    const std::string answer =
        serve(fmt::format(R"({{"execute": "set", "arguments": {{"timeout": 7, {}}}}})", wrong));
    EXPECT_THAT(answer, HasSubstr("\"error\"")) << wrong;
    EXPECT_FALSE(control_.limits().timeout) << wrong;
  }
}

TEST_F(ControlTest, EveryLimitTravelsAndIsTold) {
  Request request{Wish::kSet, {}};
  request.changes = {.downtime = milliseconds(20),
                     .bandwidth = 125'000'000,
                     .max_rounds = 12,
                     .timeout = seconds(90),
                     .on_timeout = OnTimeout::kForce,
                     .throttle = true,
                     .throttle_initial = 10,
                     .throttle_increment = 5,
                     .throttle_maximum = 70,
                     .dirty_limit = 1 << 20};
  EXPECT_EQ(serve(encode(request)), R"({"return":{}})");
  const Limits limits = control_.limits();
  EXPECT_EQ(limits.downtime, milliseconds(20));
  EXPECT_EQ(limits.max_rounds, 12u);
  EXPECT_EQ(limits.timeout, seconds(90));
  EXPECT_EQ(limits.on_timeout, OnTimeout::kForce);
  EXPECT_EQ(limits.throttle, (ThrottleLimits{true, 10, 5, 70, 1 << 20}));
  const std::string status = serve(encode({Wish::kStatus, {}}));
  for (const char* part :
       {R"("job":4711)", R"("status":"setup")", R"("downtime-limit":20.0)", R"("max-bandwidth":125000000)",
        R"("on-timeout":"force")", R"("auto-converge":true)", R"("max-cpu-throttle":70)"})
    EXPECT_THAT(status, HasSubstr(part));
  // No limit of time again, and nothing else.
  EXPECT_EQ(serve(R"({"execute": "set", "arguments": {"timeout": 0}})"), R"({"return":{}})");
  EXPECT_FALSE(control_.limits().timeout);
  EXPECT_EQ(control_.limits().max_rounds, 12u);
}

TEST_F(ControlTest, BandwidthGoesToTheLinkAtOnceAndToALinkThatComesLater) {
  EXPECT_TRUE(control_.set({.bandwidth = 5000}).ok());
  attach();
  EXPECT_EQ(rate_, 5000u);
  EXPECT_TRUE(control_.set({.bandwidth = 0}).ok());
  EXPECT_EQ(rate_, 0u);
}

TEST_F(ControlTest, AFileHasNoBandwidth) {
  Control file(4711, Limits{}, std::nullopt, nullptr);
  EXPECT_FALSE(file.set({.bandwidth = 5000}).ok());
  EXPECT_TRUE(file.set({.downtime = seconds(1)}).ok());
}

TEST_F(ControlTest, TheFreezeKeepsToNoLimit) {
  EXPECT_TRUE(control_.set({.bandwidth = 5000}).ok());
  attach();
  begin_bulk();
  EXPECT_EQ(rate_, 5000u);
  control_.publish([](Statistics& s) { s.state = JobState::kDevice; });
  EXPECT_EQ(rate_, 0u);
  EXPECT_TRUE(control_.set({.bandwidth = 6000}).ok());
  EXPECT_EQ(rate_, 0u);
  begin_bulk();  // a bad instant
  EXPECT_EQ(rate_, 6000u);
}

TEST_F(ControlTest, OnlyTheRoundsPause) {
  attach();
  EXPECT_TRUE(control_.pause().ok());
  EXPECT_EQ(rate_, 0u) << "before the rounds";
  begin_bulk();
  EXPECT_GT(rate_, 0u);
  control_.publish([](Statistics& s) { s.state = JobState::kDevice; });
  EXPECT_EQ(rate_, 0u) << "the freeze at full speed";
  begin_bulk();
  EXPECT_TRUE(control_.resume().ok());
  EXPECT_EQ(rate_, 0u);
}

TEST_F(ControlTest, WhatRemainsFollowsTheBytesThatLeave) {
  attach();
  begin_bulk();
  EXPECT_EQ(control_.statistics().remaining(), uint64_t{4096} * 400);
  control_.publish([](Statistics& s) { s.round_ended = true; });
  EXPECT_EQ(control_.statistics().remaining(), 0u);
}

TEST_F(ControlTest, ACancelThatIsSeenLeavesTheLinkAlone) {
  attach();
  begin_bulk();
  EXPECT_EQ(serve(R"({"execute": "cancel"})"), R"({"return":{}})");
  EXPECT_EQ(control_.statistics().state, JobState::kCancelling);
  const Status seen = control_.check();
  ASSERT_FALSE(seen.ok());
  EXPECT_EQ(seen.error().kind, ErrorKind::kCancelled);
  control_.look_around(monotonic_now() + seconds(10));
  EXPECT_EQ(cuts_, 0);
}

TEST_F(ControlTest, ACancelInALongSendCutsTheLinkOnce) {
  attach();
  begin_bulk();
  signalled_ = true;  // a Ctrl-C counts as one
  control_.look_around(monotonic_now());
  EXPECT_EQ(cuts_, 0) << "time to end in order";
  control_.look_around(monotonic_now() + seconds(1));
  control_.look_around(monotonic_now() + seconds(2));
  EXPECT_EQ(cuts_, 1);
  const Error told = control_.explain(fail(ErrorKind::kPeerGone, "send", "peer"));
  EXPECT_EQ(told.kind, ErrorKind::kCancelled);
}

TEST_F(ControlTest, ATimeoutCutsTheBulkRoundUnlessItIsToForce) {
  attach();
  begin_bulk();
  EXPECT_TRUE(control_.set({.timeout = seconds(1), .on_timeout = OnTimeout::kForce}).ok());
  control_.look_around(monotonic_now() + seconds(5));
  control_.look_around(monotonic_now() + seconds(6));
  EXPECT_EQ(cuts_, 0);
  EXPECT_TRUE(control_.set({.on_timeout = OnTimeout::kCancel}).ok());
  control_.look_around(monotonic_now() + seconds(5));
  control_.look_around(monotonic_now() + seconds(6));
  EXPECT_EQ(cuts_, 1);
  EXPECT_EQ(control_.explain(fail(ErrorKind::kCancelled, "send", "peer")).kind, ErrorKind::kNotConverged);
}

TEST_F(ControlTest, AfterCommitNobodyCancels) {
  attach();
  begin_bulk();
  EXPECT_TRUE(control_.begin_commit().ok());
  for (const char* wish : {"cancel", "pause", "freeze-now"})
    EXPECT_THAT(serve(fmt::format(R"({{"execute": "{}"}})", wish)), HasSubstr("too late")) << wish;
  signalled_ = true;
  control_.look_around(monotonic_now() + seconds(10));
  EXPECT_EQ(cuts_, 0);
}

TEST_F(ControlTest, WhoCancelsBeforeCommitKeepsIt) {
  EXPECT_TRUE(control_.cancel().ok());
  EXPECT_FALSE(control_.begin_commit().ok());
}

TEST_F(ControlTest, APauseEndsByResumeCancelOrFreezeNow) {
  const auto alive = [] { return Status(); };
  EXPECT_TRUE(control_.wait_while_paused(alive).ok());
  EXPECT_TRUE(control_.pause().ok());
  int calls = 0;
  EXPECT_TRUE(control_
                  .wait_while_paused([&]() -> Status {
                    ++calls;
                    return control_.resume();
                  })
                  .ok());
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(control_.pause().ok());
  EXPECT_TRUE(control_.freeze_soon().ok());
  EXPECT_TRUE(control_.wait_while_paused(alive).ok());
  EXPECT_TRUE(control_.freeze_now());
  EXPECT_TRUE(control_.pause().ok());
  EXPECT_TRUE(control_.cancel().ok());
  EXPECT_FALSE(control_.wait_while_paused(alive).ok());
}

}  // namespace
}  // namespace godwit::migration
