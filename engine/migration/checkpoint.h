// The same stream with a file at its other end: checkpoint writes it, restore reads it.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "engine/migration/compression.h"
#include "engine/migration/convergence.h"
#include "engine/migration/pid_namespace.h"
#include "engine/migration/report.h"
#include "engine/migration/tracker_kind.h"
#include "engine/model/record_stream.h"
#include "engine/state/finding.h"

namespace godwit::migration {

struct CheckpointOptions {
  pid_t pid = 0;
  std::string path;            ///< of the file, or a name for `sink`
  ImageSink* sink = nullptr;   ///< borrowed; null: the file
  bool leave_running = false;  ///< otherwise the process ends once the image is complete and on the disk
  Limits limits;
  TrackerKind tracker = TrackerKind::kAuto;
  Policy policy = decide;
  bool verify = false;  ///< compare all memory before the copy may run
  Compression compress = Compression::kAuto;
  OnProgress on_progress;
  std::function<void(const state::Findings&)> on_findings;
  const std::atomic<bool>* cancelled = nullptr;
};

/// Pre-copy rounds into the file, then the freeze: what was rewritten stands in the file twice and the later
/// one counts. On an error the process runs on and no file of that name appears. Errors as migrate().
Result<Report> checkpoint(const CheckpointOptions& options);

struct RestoreOptions {
  std::string path;              ///< of the file, or a name for `source`
  ByteSource* source = nullptr;  ///< borrowed; null: the file
  PidNamespace pid_namespace = PidNamespace::kAuto;
  std::function<void(pid_t pid, pid_t inner_pid)> on_running;
};

/// Rebuilds the process of the image and lets it run; returns its pid as this engine sees it. It is a child
/// of this process. Errors: Corrupt naming the record, Refused when this host does not fit, and as Rebuild.
Result<pid_t> restore(const RestoreOptions& options);

}  // namespace godwit::migration
