// Making one frozen thread run a little and stop again: what Injector, the bare calls and the clean-up share.
// Private to tracee; on the tracer's thread.
#pragma once

#include "engine/tracee/frozen.h"
#include "engine/tracee/stop_waiter.h"

namespace godwit::tracee {

enum class Run : uint8_t { kInvalid = 0, kContinue, kToSyscallStop };

/// Makes a thread ready to be steered: 64-bit code, no syscall user dispatch, stops marked as
/// PTRACE_O_TRACESYSGOOD does, and the filter of seccomp suspended for as long as this engine traces it.
/// Errors: Unsupported, Denied (seccomp is in force and cannot be suspended).
Status prepare_thread(const Frozen& frozen, const FrozenThread& thread, bool has_seccomp);

/// Lets the thread run until its next stop, delivering `signal` if not 0. It may sleep for as long as it
/// likes. Errors: TargetGone, Timeout.
Result<Stop> run_to_stop(const Frozen& frozen, pid_t tid, StopWaiter& waiter, Run run, int signal);

/// ORDER: in, registers first and then the mask; out, the mask first and then the registers. Every state in
/// between is one that a thread without a tracer comes home from.
Status enter(pid_t tid, const user_regs_struct& general, uint64_t signal_mask);
Status leave(const FrozenThread& thread);

/// Registers to make a thread run elsewhere: those of `from`, with clean flags and no system call to restart.
user_regs_struct registers_at(const user_regs_struct& from, RemoteAddr rip, RemoteAddr rsp);

}  // namespace godwit::tracee
