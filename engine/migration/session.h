// The life of one migration on the source, as a pure table: step(phase, event) -> {phase, actions}. No
// process, no network, no clock: migration/source carries the actions out, in order. The handover rules of
// docs/state-machine.md are visible here: no event leads from kCommitted back to kThaw except the peer's own
// word that it does not run.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace godwit::migration {

enum class Phase : uint8_t {
  kInvalid = 0,
  kChecking,   ///< connected, facts and findings are exchanged; the target is untouched
  kPrecopy,    ///< armed: the tracker sees writes, rounds are sent, the shell grows; the target runs
  kFrozen,     ///< blackout: last pages and state are sent
  kPrepared,   ///< the peer has everything and waits; the original is stopped for good
  kCommitted,  ///< COMMIT may have left: the original never runs again by our own decision
  kServing,    ///< the peer runs it and lacks pages: the original, stopped, is where they are
  kDone,       ///< the peer runs it, the original is gone
  kAborted,    ///< the original runs, nothing is on the peer
  kInDoubt,    ///< the original is stopped; a person decides (godwit resolve)
};

enum class Event : uint8_t {
  kInvalid = 0,
  kCheckPassed,
  kBadInstant,  ///< frozen at a moment that cannot be captured (a lock held): thaw and go on with rounds
  kConverged,   ///< freeze now
  kPeerPrepared,
  kCommitLeaves,  ///< recorded right before the first byte of COMMIT is sent
  kPeerRunning,   ///< and has everything
  kPeerLacks,     ///< it runs, and pages are missing (post-copy)
  kPeerAborted,   ///< the peer says it never prepared, or aborted
  kPeerLost,      ///< no answer within the limits, over all reconnects
  kFailure,       ///< anything else: error, refusal, cancel, timeout
};

enum class Action : uint8_t {
  kInvalid = 0,
  kFreeze,
  kThaw,             ///< undo the captures, let the threads run
  kStopForGood,      ///< SIGSTOP behind the freeze: the stop outlives this engine
  kUndoStop,         ///< take that back
  kDisarm,           ///< untrack: drop the userfaultfd
  kMoveAddresses,    ///< away from this host
  kReturnAddresses,  ///< back to this host, held packets to the local stack
  kForwardPackets,   ///< held packets to the peer
  kSendCommit,
  kTellAbort,  ///< best effort
  kAskPeer,    ///< reconnect and ask for the verdict until it answers or the limit is over
  kReconnect,  ///< the serving connections, over and over until the limit: the verdict comes with it
  kKillOriginal,
};

std::string_view to_string(Phase phase);
std::string_view to_string(Event event);

struct Step {
  Phase phase = Phase::kInvalid;  ///< kInvalid: the event cannot happen in this phase (our own bug)
  std::vector<Action> actions;
};

Step step(Phase phase, Event event);

}  // namespace godwit::migration
