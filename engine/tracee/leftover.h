// What an engine that died in the middle left in a process: a scratch area, and perhaps a thread on its way
// home. Private to tracee; on the tracer's thread.
#pragma once

#include <array>
#include <vector>

#include "engine/tracee/frozen.h"
#include "engine/tracee/memory.h"

namespace godwit::tracee {

struct Leftover {
  AddressRange scratch;
  bool busy = false;  ///< its engine died while it was in use; otherwise it was left on purpose
};

/// What stands at the beginning of a scratch area.
struct ScratchHeader {
  std::array<char, 16> magic;
  uint64_t busy;
};

/// The scratch that an engine left on purpose (Injector::leave), found without a layout. Empty if there is
/// none.
AddressRange find_idle_scratch(const Memory& memory);

/// Lets every thread that is inside a scratch or an abandoned bare call run until it is home again, and
/// returns what is left then. `layout` is read again when that may have changed it: a thread on its way home
/// maps or unmaps. Errors: TargetGone; Retry when one does not come out.
Result<std::vector<Leftover>> bring_threads_home(Frozen& frozen, const Memory& memory, Layout& layout,
                                                 bool has_seccomp);

}  // namespace godwit::tracee
