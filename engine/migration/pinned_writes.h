// Waits for the writes that no tracker sees. Place in the pipeline: in each round, between the collect and
// the reading of what it found. Thread: the tracer's.
//
// KERNEL: read() with O_DIRECT, process_vm_writev(), a write to /proc/PID/mem and many an ioctl() look their
// pages up once and write to them later. The lookup faults, and is seen; the write does not, however long it
// takes. A page that is collected in between looks clean and is not finished. So such calls that began before
// the collect are over before anything is read; one that begins after it faults, and its pages are collected
// again.
#pragma once

#include "engine/migration/interrupted_calls.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// Returns when every thread has left the call, if any, in which it was at the beginning of this. One after
/// the other, for some 50 us each; threads that sleep in calls of another kind are not disturbed. Errors:
/// Retry, Timeout when a thread cannot leave its call now; TargetGone.
Status await_pinned_writes(const tracee::Process& process, InterruptedCalls& interrupted);

/// Whether something may write to pages that it has pinned and no call of a thread shows: an io_uring or an
/// AIO context with requests under way, registered buffers. ORDER: asked after the collect and
/// await_pinned_writes(); if so, what the collect found counts as written at the next look as well. One that
/// is there neither then nor at a freeze has written nothing that was missed: whatever it pinned later
/// faulted, and is collected again.
Result<bool> has_unseen_writers(const tracee::Process& process);

}  // namespace godwit::migration
