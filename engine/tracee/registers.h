// The registers of one stopped thread: general purpose (fs_base, gs_base and orig_rax included) and xstate.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstddef>
#include <vector>

#include "engine/base/result.h"

namespace godwit::tracee {

struct Registers {
  user_regs_struct general{};
  std::vector<std::byte> xstate;  ///< NT_X86_XSTATE as the kernel gives it (2696 bytes with AVX-512)
};

/// The caller must be the tracer of `tid`, which must be stopped. Errors: TargetGone.
Result<Registers> read_registers(pid_t tid);
Result<user_regs_struct> read_general(pid_t tid);
Result<std::vector<std::byte>> read_xstate(pid_t tid);
Status write_general(pid_t tid, const user_regs_struct& general);
Status write_registers(pid_t tid, const Registers& registers);

/// Where the kernel writes to the program's memory whenever the thread was moved to another CPU.
struct RseqConfiguration {  // linux/ptrace.h: struct ptrace_rseq_configuration
  uint64_t address;         ///< 0: none
  uint32_t size, signature, flags, pad;
};
/// As above, and Unsupported on a kernel without it.
Result<RseqConfiguration> read_rseq(pid_t tid);

}  // namespace godwit::tracee
