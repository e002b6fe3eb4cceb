// Brings a running process under the write tracker. Place in the pipeline: before everything that looks for
// dirty pages. Thread: the tracer's.
#pragma once

#include <memory>

#include "engine/migration/interrupted_calls.h"
#include "engine/migration/tracker_kind.h"
#include "engine/model/dirty_tracker.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// A userfaultfd belongs to the address space of its maker, so the target makes it; once it is taken out, the
/// target's own number is closed. The process stands still for some 100 us. Nothing is tracked yet. A thread
/// that cannot stop is waited for, ten seconds at most. `kind` is one that choose_tracker() gave. Errors:
/// TargetGone, Denied, Unsupported, Retry.
Result<std::unique_ptr<DirtyTracker>> arm_tracker(const tracee::Process& process, TrackerKind kind,
                                                  InterruptedCalls& interrupted);

}  // namespace godwit::migration
