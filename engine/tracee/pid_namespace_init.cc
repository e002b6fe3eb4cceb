#include "engine/tracee/pid_namespace_init.h"

#include <fmt/format.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>

#include "engine/base/mapping.h"
#include "engine/base/units.h"

extern "C" {
extern const std::byte godwit_init_stub_begin[];
extern const std::byte godwit_init_stub_end[];
}

namespace godwit::tracee {
namespace {

constexpr size_t kPollOffset = 2048;  // known to the stub
constexpr int kTold = SIGUSR1;        // blocked in the init from its birth; read through a signalfd

/// The C library registered an area for this thread; after the munmap the kernel would kill for want of it.
bool unregister_rseq() {
  if (__rseq_size == 0) return true;
  auto* const area = static_cast<std::byte*>(__builtin_thread_pointer()) + __rseq_offset;
  constexpr int kUnregister = 1;
  // The kernel wants the very size that was registered, which __rseq_size tells not in every version.
  for (unsigned size = 32; size <= 1024; size += 4)
    if (::syscall(SYS_rseq, area, size, kUnregister, RSEQ_SIG) == 0) return true;
  return false;
}

/// In the child, a copy of the engine: only system calls, no lock of the C library may be taken.
[[noreturn]] void become_init(std::byte* page, int lifeline, pid_t inner_pid) {
  ::setsid();
  ::prctl(PR_SET_NAME, "godwit-init");
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGCHLD, &ignore, nullptr);
  sigset_t told;
  ::sigemptyset(&told);
  ::sigaddset(&told, kTold);
  const int signals = ::signalfd(-1, &told, 0);
  if (signals < 0 || !unregister_rseq()) ::_exit(1);
  const std::array<pollfd, 2> fds{pollfd{lifeline, POLLIN, 0}, pollfd{signals, POLLIN, 0}};
  std::memcpy(page + kPollOffset, fds.data(), sizeof fds);
  reinterpret_cast<void (*)(std::byte*, uint64_t, uint64_t)>(page)(page, kUserSpaceEnd,
                                                                   static_cast<uint64_t>(inner_pid));
  __builtin_unreachable();
}

}  // namespace

Result<pid_t> start_pid_namespace_init(int lifeline, pid_t inner_pid) {
  Mapping page =
      TRY(Mapping::create(kPageSize, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS));
  std::memcpy(page.data(), godwit_init_stub_begin,
              static_cast<size_t>(godwit_init_stub_end - godwit_init_stub_begin));
  clone_args args{};
  args.flags = CLONE_CLEAR_SIGHAND;
  args.exit_signal = SIGCHLD;
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) become_init(page.data(), lifeline, inner_pid);
  if (pid < 0) return fail_errno("clone3", "the init of a pid namespace");
  return static_cast<pid_t>(pid);
}

Status tell_pid_namespace_init(pid_t init) {
  if (::kill(init, kTold) != 0) return fail_errno("kill(SIGUSR1)", fmt::format("namespace init {}", init));
  return {};
}

}  // namespace godwit::tracee
