// The signal frame that rt_sigreturn takes a thread home through: general registers, signal mask, xstate.
// Pure. Private to tracee. KERNEL: arch/x86/kernel/signal_64.c (restore_sigcontext),
// arch/x86/kernel/fpu/signal.c.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"

namespace godwit::tracee {

/// The frame for address `at`, which must be 8 bytes off a multiple of 64. Its first word is `restorer`: a
/// `ret` with rsp = `at` comes to it. rt_sigreturn wants rsp = `at` + 8. `general` must need no restart, for
/// rt_sigreturn does none (see restart.h). The alternate signal stack stays as it is. Errors: Unsupported for
/// an xstate that the CPU does not explain.
Result<std::vector<std::byte>> build_signal_frame(uint64_t at, uint64_t restorer,
                                                  const user_regs_struct& general, uint64_t signal_mask,
                                                  std::span<const std::byte> xstate);

constexpr size_t kLargestFrame = 16384;

}  // namespace godwit::tracee
