// Calls in flight that end by themselves (sleeps, futex waits, polls, epoll_wait): what is left of them moves
// with their thread. Part of the room "threads"; in the freeze on both sides.
#pragma once

#include "engine/state/context.h"

namespace godwit::state {

/// The registers to be carried for a frozen thread, and in `state` the wait that it was in, if any.
/// What only this kernel remembers how to restart is named in `wait` and left interrupted (-516); where the
/// kernel could not be asked, it is made again from its arguments and begins its time anew.
user_regs_struct capture_wait(const CaptureContext& context, const tracee::FrozenThread& thread,
                              wire::ThreadState& state);

/// On the shell: makes the thread's kernel remember the wait of `state` with what is left of it, and changes
/// `general` where the wait is over by now. All memory and all descriptors must be in place. Errors: Corrupt,
/// TargetGone.
Status take_up_wait(BuildContext& context, const wire::ThreadState& state, user_regs_struct& general);

}  // namespace godwit::state
