// The call that maps the scratch area, and the one that unmaps it: made with nothing of ours in the process.
//
// It runs on a `syscall; ret` that the process has, with rsp at a signal frame in the lowest pages of the
// main stack, which hold nothing: they were never touched, or lie far below the stack pointer. The `ret`
// finds the address of a restorer there, and rt_sigreturn takes the thread home; so the death of this engine
// at any instruction leaves it intact. Where no such place or code exists, the call is made without
// (`exposed`), and the death of this engine in those 20 us would be the death of the process too. Private to
// tracee; on the tracer's thread.
#pragma once

#include <initializer_list>

#include "engine/tracee/gadgets.h"
#include "engine/tracee/steering.h"

namespace godwit::tracee {

constexpr uint64_t kWindowSize = 6 * kPageSize;
constexpr uint64_t kWindowFrame = 2 * kPageSize + 8;  ///< below it, room for a handler's frame

struct BareSite {
  Gadgets gadgets;
  RemoteAddr window;  ///< kWindowSize bytes in the main stack; 0 if there are none
  [[nodiscard]] bool exposed() const { return window == RemoteAddr() || !gadgets.complete(); }
};

/// Errors: Unsupported when the process has not even a `syscall`; as Memory::read().
Result<BareSite> find_bare_site(const Frozen& frozen, const Memory& memory, const Layout& layout);

/// Makes the call on the leader. Returns what the kernel returned. Errors: TargetGone, Timeout.
Result<int64_t> bare_call(const Frozen& frozen, const Memory& memory, const BareSite& site, uint64_t nr,
                          std::initializer_list<uint64_t> args);

/// The window, if a dead engine left it in the middle of a call. 0 otherwise.
RemoteAddr abandoned_window(const Memory& memory, const Layout& layout);

}  // namespace godwit::tracee
