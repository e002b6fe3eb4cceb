#include "engine/tracee/fixups.h"

#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <csignal>

#include "engine/base/files.h"
#include "engine/tracee/registers.h"
#include "engine/tracee/restart.h"

namespace godwit::tracee {
namespace {

constexpr uint64_t kSyscallInsnSize = 2;  // 0f 05
constexpr uint64_t kIgnoredByDefault =
    signal_bit(SIGCHLD) | signal_bit(SIGCONT) | signal_bit(SIGURG) | signal_bit(SIGWINCH);

constexpr uint64_t kRseqCsOffset = 8;  // of `rseq_cs` in struct rseq (linux/rseq.h)

struct RseqCs {  // linux/rseq.h: struct rseq_cs
  uint32_t version;
  uint32_t flags;
  uint64_t start_ip;
  uint64_t post_commit_offset;
  uint64_t abort_ip;
};

Error ptrace_error(const char* request, pid_t tid) {
  return fail_errno(fmt::format("ptrace({})", request), fmt::format("thread {}", tid));
}

template <typename T>
bool peek(pid_t pid, uint64_t from, T& value) {
  const iovec local{&value, sizeof value};
  const iovec remote{reinterpret_cast<void*>(from), sizeof value};
  return ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(sizeof value);
}

/// -EINTR here means that the call gave up because of this stop: had a handler run, the registers were the
/// handler's. close() is not made again: the kernel has closed the descriptor whatever it returns.
bool gave_up_on_us(const user_regs_struct& general) {
  const auto nr = static_cast<int64_t>(general.orig_rax);
  return nr >= 0 && nr != SYS_close && static_cast<int64_t>(general.rax) == -EINTR;
}

void make_again(FrozenThread& thread) {
  thread.interrupted = thread.original;
  thread.made_again = true;
  thread.original.rip -= kSyscallInsnSize;
  thread.original.rax = thread.original.orig_rax;
  thread.original.orig_rax = ~0ULL;  // no longer in a system call: nothing for the kernel to restart
}

Status fix_interrupted_call(const Process& process, FrozenThread& thread) {
  if (!gave_up_on_us(thread.original)) return {};
  const SignalStatus signals = TRY(read_signal_status(process, thread.tid));
  // KERNEL: epoll_pwait() and its like keep their temporary mask in force until the thread returns to user
  // mode. Made again under the program's own mask, they see the pending signal themselves, exactly as if it
  // came now.
  const bool temporary_mask = signals.blocked != thread.signal_mask;
  if (!temporary_mask && signals.deliverable() != 0) return {};
  make_again(thread);
  // ORDER: mask first; a death between the two leaves a call that returns EINTR early, never one that sleeps
  // on although its signal was delivered.
  if (temporary_mask) TRY(set_signal_mask(thread.tid, thread.signal_mask));
  return write_general(thread.tid, thread.original);
}

/// A thread that was let go a moment ago and stands before restart_syscall, on its way back into its call, is
/// shown inside that call, interrupted. KERNEL: from there it makes the same restart, and orig_rax still has
/// the number of the first call, unless the thread was in user mode meanwhile.
Status fix_unfinished_restart(const Process& process, FrozenThread& thread) {
  constexpr uint16_t kSyscallInsn = 0x050f;
  user_regs_struct& general = thread.original;
  uint16_t code = 0;
  if (general.rax != SYS_restart_syscall || !peek(process.pid(), general.rip, code) || code != kSyscallInsn)
    return {};
  general.rip += kSyscallInsnSize;
  general.rax = static_cast<unsigned long long>(kRestartBlock);
  if (static_cast<int64_t>(general.orig_rax) < 0) general.orig_rax = SYS_restart_syscall;
  return write_general(thread.tid, general);
}

/// KERNEL: natively the kernel aborts the section when the thread was preempted; but once the thread has run
/// elsewhere (injection) or the registers have moved to another host, it no longer knows.
Status fix_rseq_section(const Process& process, FrozenThread& thread) {
  if (static_cast<int64_t>(thread.original.orig_rax) >= 0) return {};  // no system calls inside a section
  const auto found = read_rseq(thread.tid);
  if (!found.ok()) return {};  // a kernel without rseq
  const uint64_t area = found.value().address;
  uint64_t section_at = 0;
  RseqCs section{};
  if (area == 0 || !peek(process.pid(), area + kRseqCsOffset, section_at) || section_at == 0) return {};
  if (!peek(process.pid(), section_at, section)) return {};
  if (thread.original.rip - section.start_ip >= section.post_commit_offset) return {};
  if (section.abort_ip >= kUserSpaceEnd) return {};  // the kernel will kill it for that
  thread.original.rip = section.abort_ip;
  return write_general(thread.tid, thread.original);
}

}  // namespace

uint64_t SignalStatus::deliverable() const {
  const uint64_t thrown_away = ignored | (kIgnoredByDefault & ~caught);
  return pending & ~blocked & ~thrown_away;
}

Result<SignalStatus> read_signal_status(const Process& process, pid_t tid) {
  const std::string text = TRY(process.status(tid));
  const auto mask = [&](std::string_view key) -> Result<uint64_t> {
    const auto value = field(text, key);
    const auto number = value ? parse_number(*value, 16) : std::nullopt;
    if (!number) return fail(ErrorKind::kCorrupt, fmt::format("read {}", key), fmt::format("thread {}", tid));
    return *number;
  };
  SignalStatus status;
  status.pending = TRY(mask("SigPnd:")) | TRY(mask("ShdPnd:"));
  status.blocked = TRY(mask("SigBlk:"));
  status.ignored = TRY(mask("SigIgn:"));
  status.caught = TRY(mask("SigCgt:"));
  return status;
}

Status read_and_fix(const Process& process, FrozenThread& thread) {
  thread.original = TRY(read_general(thread.tid));
  thread.signal_mask = TRY(get_signal_mask(thread.tid));
  thread.made_again = false;
  TRY(fix_unfinished_restart(process, thread));
  TRY(fix_interrupted_call(process, thread));
  return fix_rseq_section(process, thread);
}

Status unfix_if_signalled(const Process& process, FrozenThread& thread) {
  if (!thread.made_again) return {};
  const SignalStatus signals = TRY(read_signal_status(process, thread.tid));
  if (signals.deliverable() == 0) return {};
  thread.original = thread.interrupted;
  thread.made_again = false;
  return write_general(thread.tid, thread.original);
}

Status set_signal_mask(pid_t tid, uint64_t mask) {
  if (::ptrace(PTRACE_SETSIGMASK, tid, sizeof mask, &mask) != 0)
    return ptrace_error("PTRACE_SETSIGMASK", tid);
  return {};
}

Result<uint64_t> get_signal_mask(pid_t tid) {
  uint64_t mask = 0;
  if (::ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) != 0)
    return ptrace_error("PTRACE_GETSIGMASK", tid);
  return mask;
}

}  // namespace godwit::tracee
