#include "engine/tracee/registers.h"

#include <elf.h>
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "engine/base/missing_uapi.h"

namespace godwit::tracee {
namespace {

constexpr size_t kLargestXstate = 16384;  // AMX makes it 11,008 bytes

Error register_error(const char* operation, pid_t tid) {
  return fail_errno(operation, fmt::format("thread {}", tid));
}

}  // namespace

Result<user_regs_struct> read_general(pid_t tid) {
  user_regs_struct general{};
  if (::ptrace(PTRACE_GETREGS, tid, nullptr, &general) != 0)
    return register_error("ptrace(PTRACE_GETREGS)", tid);
  return general;
}

Status write_general(pid_t tid, const user_regs_struct& general) {
  user_regs_struct copy = general;
  if (::ptrace(PTRACE_SETREGS, tid, nullptr, &copy) != 0)
    return register_error("ptrace(PTRACE_SETREGS)", tid);
  return {};
}

Result<std::vector<std::byte>> read_xstate(pid_t tid) {
  std::byte buffer[kLargestXstate];
  iovec vector{buffer, sizeof buffer};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &vector) != 0)
    return register_error("ptrace(PTRACE_GETREGSET, NT_X86_XSTATE)", tid);
  return std::vector<std::byte>(buffer, buffer + vector.iov_len);
}

Result<Registers> read_registers(pid_t tid) {
  Registers registers;
  registers.general = TRY(read_general(tid));
  registers.xstate = TRY(read_xstate(tid));
  return registers;
}

Status write_registers(pid_t tid, const Registers& registers) {
  TRY(write_general(tid, registers.general));
  iovec vector{const_cast<std::byte*>(registers.xstate.data()), registers.xstate.size()};
  if (::ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &vector) != 0)
    return register_error("ptrace(PTRACE_SETREGSET, NT_X86_XSTATE)", tid);
  return {};
}

Result<RseqConfiguration> read_rseq(pid_t tid) {
  RseqConfiguration rseq{};
  const auto request = static_cast<__ptrace_request>(uapi::kPtraceGetRseqConfiguration);
  if (::ptrace(request, tid, sizeof rseq, &rseq) >= 0) return rseq;
  Error error = register_error("ptrace(PTRACE_GET_RSEQ_CONFIGURATION)", tid);
  if (error.err == EIO) error.kind = ErrorKind::kUnsupported;
  return error;
}

}  // namespace godwit::tracee
