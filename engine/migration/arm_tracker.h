// Brings a running process under the write tracker. Place in the pipeline: before everything that looks for
// dirty pages. Thread: the tracer's.
#pragma once

#include <memory>

#include "engine/migration/interrupted_calls.h"
#include "engine/tracee/process.h"
#include "uffd/wp_tracker.h"

namespace godwit::migration {

/// A userfaultfd belongs to the address space of its maker, so the target makes it; once it is taken out, the
/// target's own number is closed. The process stands still for some 100 us. Nothing is tracked yet. A thread
/// that cannot stop is waited for, ten seconds at most. Errors: TargetGone, Denied, Unsupported, Retry.
Result<std::unique_ptr<uffd::WpTracker>> arm_tracker(const tracee::Process& process,
                                                     InterruptedCalls& interrupted);

}  // namespace godwit::migration
