#include "engine/migration/session.h"

namespace godwit::migration {
namespace {

Step checking(Event event) {
  switch (event) {
    case Event::kCheckPassed:
      return {Phase::kPrecopy, {}};
    case Event::kPeerAborted:
    case Event::kPeerLost:
      return {Phase::kAborted, {}};
    case Event::kFailure:
      return {Phase::kAborted, {Action::kTellAbort}};
    default:
      return {};
  }
}

Step precopy(Event event) {
  switch (event) {
    case Event::kConverged:
      return {Phase::kFrozen, {Action::kFreeze}};
    case Event::kPeerAborted:
    case Event::kPeerLost:
      return {Phase::kAborted, {Action::kDisarm}};
    case Event::kFailure:
      return {Phase::kAborted, {Action::kDisarm, Action::kTellAbort}};
    default:
      return {};
  }
}

Step frozen(Event event) {
  switch (event) {
    case Event::kBadInstant:
      return {Phase::kPrecopy, {Action::kThaw}};
    // ORDER: the address goes before COMMIT leaves, so that it never stands on two hosts.
    case Event::kPeerPrepared:
      return {Phase::kPrepared, {Action::kStopForGood, Action::kMoveAddresses}};
    case Event::kPeerAborted:
    case Event::kPeerLost:
      return {Phase::kAborted, {Action::kThaw, Action::kReturnAddresses, Action::kDisarm}};
    case Event::kFailure:
      return {Phase::kAborted,
              {Action::kThaw, Action::kReturnAddresses, Action::kDisarm, Action::kTellAbort}};
    default:
      return {};
  }
}

Step prepared(Event event) {
  switch (event) {
    case Event::kCommitLeaves:
      return {Phase::kCommitted, {Action::kSendCommit}};
    case Event::kPeerAborted:
    case Event::kPeerLost:
      return {Phase::kAborted, {Action::kReturnAddresses, Action::kUndoStop, Action::kThaw, Action::kDisarm}};
    case Event::kFailure:
      return {
          Phase::kAborted,
          {Action::kReturnAddresses, Action::kUndoStop, Action::kThaw, Action::kDisarm, Action::kTellAbort}};
    default:
      return {};
  }
}

Step committed(Event event) {
  switch (event) {
    // ORDER: the peer's process waits for its packets; the original can die at leisure.
    case Event::kPeerRunning:
      return {Phase::kDone, {Action::kForwardPackets, Action::kKillOriginal}};
    case Event::kPeerLacks:
      return {Phase::kServing, {Action::kForwardPackets}};
    case Event::kPeerAborted:
      return {Phase::kAborted, {Action::kReturnAddresses, Action::kUndoStop, Action::kThaw, Action::kDisarm}};
    case Event::kPeerLost:
      return {Phase::kInDoubt, {}};
    case Event::kFailure:
      return {Phase::kCommitted, {Action::kAskPeer}};
    default:
      return {};
  }
}

/// INVARIANT: whatever happens, the original neither runs (its copy does) nor goes (its copy needs its
/// pages), until the peer says that it has everything.
Step serving(Event event) {
  switch (event) {
    case Event::kPeerRunning:
      return {Phase::kDone, {Action::kKillOriginal}};
    case Event::kPeerLacks:
      return {Phase::kServing, {}};
    case Event::kFailure:
      return {Phase::kServing, {Action::kReconnect}};
    case Event::kPeerLost:
      return {Phase::kInDoubt, {}};
    default:
      return {};
  }
}

}  // namespace

Step step(Phase phase, Event event) {
  switch (phase) {
    case Phase::kChecking:
      return checking(event);
    case Phase::kPrecopy:
      return precopy(event);
    case Phase::kFrozen:
      return frozen(event);
    case Phase::kPrepared:
      return prepared(event);
    case Phase::kCommitted:
      return committed(event);
    case Phase::kServing:
      return serving(event);
    default:
      return {};  // the ends accept nothing more
  }
}

std::string_view to_string(Phase phase) {
  switch (phase) {
    case Phase::kChecking:
      return "checking";
    case Phase::kPrecopy:
      return "pre-copy";
    case Phase::kFrozen:
      return "frozen";
    case Phase::kPrepared:
      return "prepared";
    case Phase::kCommitted:
      return "committed";
    case Phase::kServing:
      return "serving";
    case Phase::kDone:
      return "done";
    case Phase::kAborted:
      return "aborted";
    case Phase::kInDoubt:
      return "in doubt";
    case Phase::kInvalid:
      break;
  }
  return "invalid";
}

std::string_view to_string(Event event) {
  switch (event) {
    case Event::kCheckPassed:
      return "check passed";
    case Event::kBadInstant:
      return "bad instant";
    case Event::kConverged:
      return "converged";
    case Event::kPeerPrepared:
      return "peer prepared";
    case Event::kCommitLeaves:
      return "commit leaves";
    case Event::kPeerRunning:
      return "peer running";
    case Event::kPeerLacks:
      return "peer lacks pages";
    case Event::kPeerAborted:
      return "peer aborted";
    case Event::kPeerLost:
      return "peer lost";
    case Event::kFailure:
      return "failure";
    case Event::kInvalid:
      break;
  }
  return "invalid";
}

}  // namespace godwit::migration
