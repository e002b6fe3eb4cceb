// How the kernel schedules a thread: policy, nice value, affinity, priority of its I/O. Part of the room
// "threads", and what makes a destination whose processors are busy build without waiting for them.
#pragma once

#include <sys/types.h>

#include "engine/base/result.h"
#include "engine/tracee/shell.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {

/// Fills the fields of `state`. `tid` as this engine sees it. Errors: TargetGone, System.
Status capture_scheduling(pid_t tid, wire::ThreadState& state);

/// From outside, so at any time. A host with fewer processors keeps of the affinity what it can. Errors:
/// Denied, System.
Status build_scheduling(const tracee::Shell& shell, const wire::ThreadState& state);

/// Until build_scheduling(), what is left to do in the threads of `shell` is done before the ordinary work of
/// this host. Without the privilege nothing happens.
void hurry(const tracee::Shell& shell, pid_t inner_tid);
void hurry_all(const tracee::Shell& shell);
/// As it was before. A thread takes over what its maker has, so makers are calm.
void calm(const tracee::Shell& shell, pid_t inner_tid);

}  // namespace godwit::state
