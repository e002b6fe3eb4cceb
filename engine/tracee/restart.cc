#include "engine/tracee/restart.h"

#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::tracee {
namespace {

constexpr uint64_t kSyscallInsnSize = 2;
constexpr long kSleeps[] = {SYS_nanosleep, SYS_clock_nanosleep, SYS_poll,
                            SYS_futex};  // those with a restart block

}  // namespace

user_regs_struct restarted(user_regs_struct general) {
  constexpr int64_t kErrors[] = {512, 513, 514,
                                 516};  // linux/errno.h: ERESTARTSYS, NOINTR, NOHAND, _RESTARTBLOCK
  const bool restarts = std::ranges::count(kErrors, -static_cast<int64_t>(general.rax)) != 0;
  if (static_cast<int64_t>(general.orig_rax) < 0 || !restarts) return general;
  general.rip -= kSyscallInsnSize;
  general.rax = general.orig_rax;
  general.orig_rax = ~0ULL;
  return general;
}

user_regs_struct restarted(const Memory& memory, const user_regs_struct& general) {
  user_regs_struct again = restarted(general);
  if (again.rax != SYS_restart_syscall) return again;
  constexpr unsigned char kMovEax = 0xb8;
  constexpr size_t kMovSize = 5;
  std::array<unsigned char, kMovSize + kSyscallInsnSize> code{};
  const auto bytes = std::as_writable_bytes(std::span(code));
  if (!memory.read(RemoteAddr(again.rip - kMovSize), bytes).ok()) return again;
  uint32_t nr = 0;
  std::memcpy(&nr, code.data() + 1, sizeof nr);
  const bool is_call = code[0] == kMovEax && code[5] == 0x0f && code[6] == 0x05;
  if (is_call && std::ranges::count(kSleeps, static_cast<long>(nr)) != 0) again.rax = nr;
  return again;
}

}  // namespace godwit::tracee
