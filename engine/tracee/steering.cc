#include "engine/tracee/steering.h"

#include <fmt/format.h>
#include <sys/ptrace.h>

#include "engine/base/missing_uapi.h"
#include "engine/tracee/fixups.h"

namespace godwit::tracee {
namespace {

constexpr uint64_t kUserCs64 = 0x33;
constexpr Nanos kRunLimit = std::chrono::seconds(30);
constexpr int kOptionSuspendSeccomp = 1 << 21;  // linux/ptrace.h: PTRACE_O_SUSPEND_SECCOMP
constexpr uint64_t kTrapFlag = 0x100, kDirectionFlag = 0x400, kAlignmentFlag = 0x40000;

struct UserDispatch {  // linux/ptrace.h: struct ptrace_sud_config
  uint64_t mode, selector, offset, length;
};

Error refuse(const FrozenThread& thread, const char* why) {
  return fail(ErrorKind::kUnsupported, "inject system calls", fmt::format("thread {}", thread.tid), why);
}

}  // namespace

Status prepare_thread(const Frozen& frozen, const FrozenThread& thread, bool has_seccomp) {
  if (frozen.stop_is_permanent())
    return fail(ErrorKind::kBug, "inject system calls", fmt::format("thread {}", thread.tid),
                "its stop was made permanent");
  if (thread.original.cs != kUserCs64) return refuse(thread, "it runs 32-bit code");
  UserDispatch dispatch{};
  if (::ptrace(static_cast<__ptrace_request>(uapi::kPtraceGetSyscallUserDispatch), thread.tid,
               sizeof dispatch, &dispatch) == 0 &&
      dispatch.mode != 0)
    return refuse(thread, "it dispatches system calls to itself (PR_SET_SYSCALL_USER_DISPATCH)");
  const int options = PTRACE_O_TRACESYSGOOD | (has_seccomp ? kOptionSuspendSeccomp : 0);
  if (::ptrace(PTRACE_SETOPTIONS, thread.tid, nullptr, options) == 0) return {};
  Error error = fail_errno("ptrace(PTRACE_SETOPTIONS)", fmt::format("thread {}", thread.tid));
  if (has_seccomp) error.remedy = "its seccomp filter can only be suspended with CAP_SYS_ADMIN";
  return error;
}

Result<Stop> run_to_stop(const Frozen& frozen, pid_t tid, StopWaiter& waiter, Run run, int signal) {
  const auto request = run == Run::kToSyscallStop ? PTRACE_SYSCALL : PTRACE_CONT;
  if (::ptrace(request, tid, nullptr, signal) != 0)
    return fail_errno("ptrace(PTRACE_CONT)", fmt::format("thread {}", tid));
  auto stop = waiter.wait_patiently(frozen.process().pid(), tid, kRunLimit);
  if (!stop.ok() && stop.error().kind == ErrorKind::kTimeout) {
    // Stop it where it is, so that the caller can put its registers back: the call is given up.
    ::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr);
    TRY(waiter.wait_patiently(frozen.process().pid(), tid, kRunLimit));
  }
  return stop;
}

Status enter(pid_t tid, const user_regs_struct& general, uint64_t signal_mask) {
  TRY(write_general(tid, general));
  return set_signal_mask(tid, signal_mask);
}

Status leave(const FrozenThread& thread) {
  TRY(set_signal_mask(thread.tid, thread.signal_mask));
  return write_general(thread.tid, thread.original);
}

user_regs_struct registers_at(const user_regs_struct& from, RemoteAddr rip, RemoteAddr rsp) {
  user_regs_struct general = from;
  general.rip = rip.value();
  general.rsp = rsp.value();
  general.eflags &= ~(kTrapFlag | kDirectionFlag | kAlignmentFlag);
  general.orig_rax = ~0ULL;  // KERNEL: else the logic that restarts system calls would move rip
  return general;
}

}  // namespace godwit::tracee
