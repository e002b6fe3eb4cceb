// The birth of a shell: namespaces, the child with its pid, the seize, and an address space with nothing but
// scratch.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/units.h"
#include "engine/tracee/pid_namespace_init.h"
#include "engine/tracee/shell_state.h"
#include "engine/tracee/shell_thread.h"

namespace godwit::tracee {
namespace {

/// KERNEL: the file is missing below /proc/PID/task, but /proc/TID exists for every thread.
std::string offsets_path() {
  return fmt::format("/proc/{}/timens_offsets", ::gettid());
}

Error with_remedy(Error error, std::string remedy) {
  error.remedy = std::move(remedy);
  return error;
}

/// The offset of `clock` in the namespace that children will enter, as the kernel shows it.
Result<Nanos> read_offset(std::string_view text, std::string_view clock) {
  const auto rest = field(text, clock);
  const std::vector<std::string_view> words = rest ? split(*rest, ' ') : std::vector<std::string_view>{};
  if (words.size() != 2) return fail(ErrorKind::kUnsupported, "read the time namespace", offsets_path());
  const bool negative = words[0].front() == '-';
  const auto seconds = parse_number(words[0].substr(negative ? 1 : 0));
  const auto nanos = parse_number(words[1]);
  if (!seconds || !nanos) return fail(ErrorKind::kUnsupported, "read the time namespace", offsets_path());
  const auto signed_seconds = std::chrono::seconds(static_cast<int64_t>(*seconds) * (negative ? -1 : 1));
  return signed_seconds + Nanos(static_cast<int64_t>(*nanos));
}

std::string offset_line(std::string_view clock, Nanos offset) {
  const auto seconds =
      std::chrono::floor<std::chrono::seconds>(offset);  // the nanoseconds must not be negative
  return fmt::format("{} {} {}\n", clock, seconds.count(), (offset - seconds).count());
}

/// Children of this thread will see other clocks.
/// KERNEL: the numbers in timens_offsets count from the host's first namespace, a new namespace starts with
/// those of the old one; so what it shows after the unshare is to be added.
Status enter_time_namespace(const ShellOptions& options) {
  if (options.monotonic_offset == Nanos{} && options.boottime_offset == Nanos{}) return {};
  if (::unshare(CLONE_NEWTIME) != 0)
    return with_remedy(fail_errno("unshare(CLONE_NEWTIME)", fmt::format("pid {}", options.pid)),
                       "needs CAP_SYS_ADMIN and CONFIG_TIME_NS");
  const std::string shown = TRY(read_file(offsets_path()));
  const Nanos monotonic = TRY(read_offset(shown, "monotonic")) + options.monotonic_offset;
  const Nanos boottime = TRY(read_offset(shown, "boottime")) + options.boottime_offset;
  return write_file(offsets_path(), offset_line("monotonic", monotonic) + offset_line("boottime", boottime));
}

Error explain_clone(int err, const ShellOptions& options) {
  Error error = fail_errno("clone3(set_tid)", fmt::format("pid {}", options.pid), err);
  if (err == EEXIST)
    error.remedy = "the pid is taken on this host: end what has it, or receive with --pid-namespace new";
  if (err == EPERM) error.remedy = "needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN";
  if (err == EINVAL) error.remedy = "the pid is beyond kernel.pid_max of this host: raise it";
  if (err == ENOMEM && options.new_pid_namespace) error.remedy = "the init of the new pid namespace has died";
  return error;
}

/// In the child, a copy of the engine: it waits to be seized, or for the end of the engine.
[[noreturn]] void wait_for_tracer(int lifeline) {
  char nothing;
  while (::syscall(SYS_read, lifeline, &nothing, 1) != 0) {
  }
  ::syscall(SYS_exit_group, 1);
  __builtin_unreachable();
}

/// All signals are blocked on this thread and thus in the child; handlers are gone by CLONE_CLEAR_SIGHAND.
Result<pid_t> clone_shell(const ShellOptions& options, int lifeline) {
  pid_t wanted = options.pid;
  clone_args args{};
  args.flags = CLONE_FILES | CLONE_CLEAR_SIGHAND;
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&wanted);
  args.set_tid_size = 1;  // the number in its innermost namespace
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) wait_for_tracer(lifeline);
  if (pid < 0) return explain_clone(errno, options);
  return static_cast<pid_t>(pid);
}

/// ORDER: EXITKILL comes with the seize itself, while the lifeline still ends the child.
Result<uint64_t> seize(const std::string& name, pid_t pid) {
  uint64_t options = PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD;
  // With it the last batches run although the process's seccomp filters are already there.
  const uint64_t beyond_seccomp = options | PTRACE_O_SUSPEND_SECCOMP;
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, beyond_seccomp) == 0) {
    options = beyond_seccomp;
  } else if (::ptrace(PTRACE_SEIZE, pid, nullptr, options) != 0) {
    return fail_errno("ptrace(SEIZE)", name);
  }
  if (::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) return fail_errno("ptrace(INTERRUPT)", name);
  return options;
}

/// What the child inherited of our C library's thread, and all memory but the scratch.
/// ORDER: the registrations first: the kernel writes to a registered rseq area and kills who has none there.
Result<Batch> strip_batch(pid_t pid, const AddressRange& scratch) {
  Batch batch;
  struct __ptrace_rseq_configuration rseq {};
  const long size = ::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, pid, sizeof rseq, &rseq);
  if (size < 0 && errno != EIO)  // EIO: a kernel without rseq
    return fail_errno("ptrace(GET_RSEQ_CONFIGURATION)", fmt::format("shell {}", pid));
  if (size > 0 && rseq.rseq_abi_pointer != 0) {
    constexpr int kUnregister = 1;
    batch.call(SYS_rseq, {rseq.rseq_abi_pointer, rseq.rseq_abi_size, kUnregister, rseq.signature},
               "rseq(unregister)");
  }
  batch.call(SYS_set_robust_list, {0, 24}, "set_robust_list(0)");
  batch.call(SYS_set_tid_address, {0}, "set_tid_address(0)");
  stack_t no_stack{};
  no_stack.ss_flags = SS_DISABLE;
  batch.call(SYS_sigaltstack, {batch.put_value(no_stack), 0}, "sigaltstack(SS_DISABLE)");
  batch.call(SYS_munmap, {0, scratch.start.value()}, "munmap(below the scratch)");
  batch.call(SYS_munmap, {scratch.end, kUserSpaceEnd - scratch.end.value()}, "munmap(above the scratch)");
  return batch;
}

/// All but SIGTRAP, by which a batch ends.
Status block_signals(pid_t pid) {
  const uint64_t mask = ~(uint64_t{1} << (SIGTRAP - 1));
  if (::ptrace(PTRACE_SETSIGMASK, pid, sizeof mask, &mask) != 0)
    return fail_errno("ptrace(SETSIGMASK)", fmt::format("shell {}", pid));
  return {};
}

/// A shell belongs to the thread that spawns it. Gives the lifeline, which serves once.
Result<int> take_lifeline(pid_t pid) {
  ShellThreadContext* context = shell_thread_context();
  if (context == nullptr || context->lifeline < 0)
    return fail(ErrorKind::kBug, "spawn", fmt::format("shell {}", pid),
                "must be called on a ShellThread, once per thread");
  return std::exchange(context->lifeline, -1);
}

}  // namespace

Result<std::unique_ptr<Shell>> Shell::spawn(const ShellOptions& options) {
  const Fd lifeline(TRY(take_lifeline(options.pid)));
  TRY(enter_time_namespace(options));
  auto state = std::make_unique<State>(TRY(ShellScratch::create()));
  State& s = *state;
  if (options.new_pid_namespace) {
    if (::unshare(CLONE_NEWPID) != 0)
      return with_remedy(fail_errno("unshare(CLONE_NEWPID)", fmt::format("pid {}", options.pid)),
                         "needs CAP_SYS_ADMIN");
    // A process that is pid 1 itself needs no other.
    if (options.pid != 1) s.init = TRY(start_pid_namespace_init(lifeline.get(), options.pid));
  }
  s.tasks.push_back({.inner = options.pid, .outer = TRY(clone_shell(options, lifeline.get()))});
  ShellTask& leader = s.leader();
  s.options = TRY(seize(s.name(leader), leader.outer));
  TRY(s.wait_stop(leader));
  if (s.init > 0) TRY(tell_pid_namespace_init(s.init));
  s.base = TRY(read_general(leader.outer));
  s.base.orig_rax = ~uint64_t{0};  // no system call to restart
  TRY(block_signals(leader.outer));
  Batch strip = TRY(strip_batch(leader.outer, s.scratch.range()));
  TRY(s.run(leader, strip));
  return std::unique_ptr<Shell>(new Shell(std::move(state)));
}

}  // namespace godwit::tracee
