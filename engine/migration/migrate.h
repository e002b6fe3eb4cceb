// `godwit migrate`: the source's side of a whole migration, from check to the original's end.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/units.h"
#include "engine/migration/compression.h"
#include "engine/migration/convergence.h"
#include "engine/migration/link_options.h"
#include "engine/migration/report.h"
#include "engine/migration/tracker_kind.h"
#include "engine/state/finding.h"

namespace godwit::migration {

struct MigrateOptions {
  pid_t pid = 0;
  LinkOptions link;
  Limits limits;
  TrackerKind tracker = TrackerKind::kAuto;
  Policy policy = decide;
  bool verify = false;  ///< compare all memory before the copy may run
  size_t cache_bytes = 64_MiB;
  Compression compress = Compression::kAuto;     ///< if the peer can unpack
  std::vector<std::string> move_addresses;       ///< "ADDR/LEN@DEV"
  std::string hooks;                             ///< a directory, or empty
  Nanos forward_after{std::chrono::seconds(1)};  ///< how long late packets of moved addresses are forwarded
  Nanos reconnect{std::chrono::seconds(60)};  ///< how long to try when a link breaks while pages are missing
  OnProgress on_progress;
  std::function<void(const state::Findings&)> on_findings;
  std::function<void(const Report&)> on_completed;  ///< the destination runs it; forwarding may still go on
  const std::atomic<bool>* cancelled = nullptr;
};

/// Blocks until the end. On an error `original_stopped` tells the one case in which the original does not run
/// (InDoubt). Must be called from a process without other threads: it forks a guardian first.
/// Errors: Refused, NotConverged, Cancelled, PeerGone, InDoubt, ... (exit codes: cli/exit_code.h).
Result<Report> migrate(const MigrateOptions& options);

/// Only the check: local findings, and the destination's when `link.destination` is not empty.
Result<state::Findings> check(pid_t pid, LinkOptions link, const std::vector<std::string>& move_addresses);

/// What a person decides about an original that is stopped in doubt. Refused unless the journal knows the
/// pid.
Status resolve(pid_t pid, bool resume);

}  // namespace godwit::migration
