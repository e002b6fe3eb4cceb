#include "engine/tracee/bare_call.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/log.h"
#include "engine/tracee/restart.h"
#include "engine/tracee/signal_frame.h"

namespace godwit::tracee {
namespace {

// The window's first bytes: whose it is, and whether a call is under way.
using Mark = std::array<char, 16>;
constexpr Mark kBusy = {'g', 'o', 'd', 'w', 'i', 't', ' ', 'w', 'i', 'n', 'd', 'o', 'w', ' ', 'b', 0};
constexpr Mark kIdle = {'g', 'o', 'd', 'w', 'i', 't', ' ', 'w', 'i', 'n', 'd', 'o', 'w', ' ', 'i', 0};
constexpr uint64_t kRedZone = 128;

const Vma* main_stack(const Layout& layout) {
  const auto at =
      std::find_if(layout.begin(), layout.end(), [](const Vma& vma) { return vma.path == "[stack]"; });
  const bool usable = at != layout.end() &&
                      (at->prot & (PROT_READ | PROT_WRITE)) == (PROT_READ | PROT_WRITE) &&
                      at->range.size() >= 2 * kWindowSize;
  return usable ? &*at : nullptr;
}

/// No page of the window was ever written: pagemap tells it without touching them.
bool never_touched(pid_t pid, RemoteAddr window) {
  const Fd pagemap(::open(fmt::format("/proc/{}/pagemap", pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<uint64_t, kWindowSize / kPageSize> entries{};
  const auto offset = static_cast<off_t>((window.value() >> kPageShift) * sizeof(uint64_t));
  if (::pread(pagemap.get(), entries.data(), sizeof entries, offset) != static_cast<ssize_t>(sizeof entries))
    return false;
  return std::all_of(entries.begin(), entries.end(), [](uint64_t entry) { return entry == 0; });
}

bool has_mark(const Memory& memory, RemoteAddr window, const Mark& mark) {
  const auto found = memory.read_value<Mark>(window);
  return found.ok() && found.value() == mark;
}

/// SAFETY: the lowest pages of the main stack are dead if they were never written, if the last who wrote them
/// was a godwit (whose threads have come home: the caller saw to it), or if the main thread's stack pointer
/// is above them.
RemoteAddr find_window(const Frozen& frozen, const Memory& memory, const Layout& layout) {
  const Vma* stack = main_stack(layout);
  if (stack == nullptr) return {};
  const RemoteAddr window = stack->range.start;
  const RemoteAddr sp(frozen.leader().original.rsp);
  if (stack->range.contains(sp) && sp - stack->range.start >= kWindowSize + kRedZone) return window;
  if (never_touched(memory.pid(), window) || has_mark(memory, window, kIdle) ||
      has_mark(memory, window, kBusy))
    return window;
  return {};
}

Status write_mark(const Memory& memory, RemoteAddr window, const Mark& mark) {
  return memory.write(window, std::as_bytes(std::span(mark)));
}

/// Everything that takes the thread home, and the registers that start the call.
Result<user_regs_struct> set_up(const FrozenThread& thread, const Memory& memory, const BareSite& site) {
  if (site.exposed()) {
    log_debug("injecting into pid {} without a way home for the first call", memory.pid());
    return registers_at(thread.original, site.gadgets.syscall, RemoteAddr(thread.original.rsp));
  }
  const RemoteAddr frame_at = site.window + kWindowFrame;
  const auto xstate = TRY(read_xstate(thread.tid));
  const auto frame = TRY(build_signal_frame(frame_at.value(), site.gadgets.restorer.value(),
                                            restarted(memory, thread.original), thread.signal_mask, xstate));
  TRY(memory.write(frame_at, frame));
  TRY(write_mark(memory, site.window, kBusy));
  return registers_at(thread.original, site.gadgets.syscall_ret, frame_at);
}

void set_arguments(user_regs_struct& general, uint64_t nr, std::initializer_list<uint64_t> args) {
  unsigned long long* const places[] = {&general.rdi, &general.rsi, &general.rdx,
                                        &general.r10, &general.r8,  &general.r9};
  general.rax = nr;
  size_t i = 0;
  for (const uint64_t arg : args) *places[i++] = arg;
}

/// Runs to the stop at the end of the call. What the kernel returned is then in rax.
/// KERNEL: PTRACE_SYSCALL and not a single step: a step ends in a forced SIGTRAP, which resets the program's
/// own SIGTRAP handler when that signal is blocked, and kills the thread when its tracer has just died.
Result<int64_t> run_call(const Frozen& frozen, pid_t tid, StopWaiter& waiter) {
  int syscall_stops = 0, signal = 0;
  while (syscall_stops < 2) {
    const Stop stop = TRY(run_to_stop(frozen, tid, waiter, Run::kToSyscallStop, signal));
    signal = stop.is_signal_delivery() ? stop.signal()
                                       : 0;  // SIGSTOP alone cannot be blocked: stopped, it goes on
    if (stop.is_syscall_stop()) ++syscall_stops;
  }
  return static_cast<int64_t>(TRY(read_general(tid)).rax);
}

}  // namespace

Result<BareSite> find_bare_site(const Frozen& frozen, const Memory& memory, const Layout& layout) {
  BareSite site;
  site.gadgets = TRY(find_gadgets(memory, layout));
  site.window = find_window(frozen, memory, layout);
  if (site.gadgets.syscall == RemoteAddr())
    return fail(ErrorKind::kUnsupported, "inject system calls", fmt::format("pid {}", memory.pid()),
                "none of its code holds a syscall instruction");
  return site;
}

Result<int64_t> bare_call(const Frozen& frozen, const Memory& memory, const BareSite& site, uint64_t nr,
                          std::initializer_list<uint64_t> args) {
  const FrozenThread& thread = frozen.leader();
  StopWaiter waiter = TRY(StopWaiter::create());
  user_regs_struct general = TRY(set_up(thread, memory, site));
  set_arguments(general, nr, args);
  TRY(enter(thread.tid, general, ~0ULL));
  auto result = run_call(frozen, thread.tid, waiter);
  if (!result.ok() && result.error().kind == ErrorKind::kTargetGone) return result;
  TRY(leave(thread));
  if (!site.exposed()) TRY(write_mark(memory, site.window, kIdle));
  return result;
}

RemoteAddr abandoned_window(const Memory& memory, const Layout& layout) {
  const Vma* stack = main_stack(layout);
  // ORDER: pagemap first, for reading the mark would touch the page.
  if (stack == nullptr || never_touched(memory.pid(), stack->range.start)) return {};
  return has_mark(memory, stack->range.start, kBusy) ? stack->range.start : RemoteAddr();
}

}  // namespace godwit::tracee
