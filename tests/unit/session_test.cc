#include "engine/migration/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace godwit::migration {
namespace {

constexpr Phase kPhases[] = {Phase::kChecking, Phase::kPrecopy,   Phase::kFrozen,
                             Phase::kPrepared, Phase::kCommitted, Phase::kServing,
                             Phase::kDone,     Phase::kAborted,   Phase::kInDoubt};
constexpr Event kEvents[] = {
    Event::kCheckPassed, Event::kBadInstant, Event::kConverged,   Event::kPeerPrepared, Event::kCommitLeaves,
    Event::kPeerRunning, Event::kPeerLacks,  Event::kPeerAborted, Event::kPeerLost,     Event::kFailure};

bool has(const Step& s, Action a) {
  return std::find(s.actions.begin(), s.actions.end(), a) != s.actions.end();
}

TEST(Session, TheWayOfASuccess) {
  Phase phase = Phase::kChecking;
  for (const Event event : {Event::kCheckPassed, Event::kConverged, Event::kBadInstant, Event::kConverged,
                            Event::kPeerPrepared, Event::kCommitLeaves, Event::kPeerRunning})
    phase = step(phase, event).phase;
  EXPECT_EQ(phase, Phase::kDone);
}

TEST(Session, BeforeCommitEveryFailureLeavesTheOriginalRunning) {
  for (const Phase phase : {Phase::kChecking, Phase::kPrecopy, Phase::kFrozen, Phase::kPrepared}) {
    for (const Event event : {Event::kPeerAborted, Event::kPeerLost, Event::kFailure}) {
      const Step s = step(phase, event);
      EXPECT_EQ(s.phase, Phase::kAborted);
      EXPECT_EQ(has(s, Action::kThaw), phase == Phase::kFrozen || phase == Phase::kPrepared);
      EXPECT_FALSE(has(s, Action::kKillOriginal));
    }
  }
}

TEST(Session, AfterCommitOnlyThePeersOwnWordThawsTheOriginal) {
  for (const Event event : kEvents) {
    const Step s = step(Phase::kCommitted, event);
    if (has(s, Action::kThaw)) {
      EXPECT_EQ(event, Event::kPeerAborted);
    }
    if (has(s, Action::kKillOriginal)) {
      EXPECT_EQ(event, Event::kPeerRunning);
    }
  }
  EXPECT_EQ(step(Phase::kCommitted, Event::kPeerLost).phase, Phase::kInDoubt);
  EXPECT_EQ(step(Phase::kCommitted, Event::kFailure).phase, Phase::kCommitted);
}

/// The copy runs and needs the original's pages: it neither runs nor goes before the peer has everything.
TEST(Session, WhileServingTheOriginalStaysAsItIs) {
  EXPECT_EQ(step(Phase::kCommitted, Event::kPeerLacks).phase, Phase::kServing);
  EXPECT_FALSE(has(step(Phase::kCommitted, Event::kPeerLacks), Action::kKillOriginal));
  for (const Event event : kEvents) {
    const Step s = step(Phase::kServing, event);
    EXPECT_FALSE(has(s, Action::kThaw));
    EXPECT_FALSE(has(s, Action::kUndoStop));
    EXPECT_EQ(has(s, Action::kKillOriginal), event == Event::kPeerRunning);
  }
  EXPECT_EQ(step(Phase::kServing, Event::kFailure).phase, Phase::kServing);
  EXPECT_EQ(step(Phase::kServing, Event::kPeerLost).phase, Phase::kInDoubt);
}

TEST(Session, OnlyPrepareLeadsToCommitAndOnlyRunningKills) {
  for (const Phase phase : kPhases) {
    for (const Event event : kEvents) {
      const Step s = step(phase, event);
      if (has(s, Action::kSendCommit)) {
        EXPECT_EQ(phase, Phase::kPrepared);
      }
      if (has(s, Action::kKillOriginal)) {
        EXPECT_TRUE(phase == Phase::kCommitted || phase == Phase::kServing);
        EXPECT_EQ(event, Event::kPeerRunning);
      }
      if (phase >= Phase::kDone) {
        EXPECT_EQ(s.phase, Phase::kInvalid);
      }
    }
  }
}

}  // namespace
}  // namespace godwit::migration
