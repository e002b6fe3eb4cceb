// Registers with which an interrupted system call can be made again by a thread whose kernel does not
// remember it: after rt_sigreturn, or on another host. Thread-safe.
#pragma once

#include "engine/tracee/memory.h"
#include "engine/tracee/registers.h"

namespace godwit::tracee {

/// What a call returns inside the kernel whose restart only the thread's restart block knows: linux/errno.h,
/// -ERESTART_RESTARTBLOCK.
constexpr int64_t kRestartBlock = -516;

/// `general` of a stopped thread as it is when the kernel has restarted the call (-ERESTART* in rax: rip back
/// over `syscall`, rax = orig_rax); otherwise unchanged. Pure. With -ERESTART_RESTARTBLOCK, a relative sleep
/// begins anew.
user_regs_struct restarted(user_regs_struct general);

/// The same, also where only the kernel knows what to restart. KERNEL: a sleep that was interrupted before
/// stands in restart_syscall() or is about to enter it, and for a thread that lost its restart block that
/// returns EINTR. The call's own number is taken from the code before it (`mov $nr, %eax; syscall`); where
/// there is none, the registers stay as restarted() gives them.
user_regs_struct restarted(const Memory& memory, const user_regs_struct& general);

}  // namespace godwit::tracee
