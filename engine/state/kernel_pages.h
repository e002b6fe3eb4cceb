// Memory that the kernel itself reads or writes on behalf of a thread, at moments when it does not wait for a
// missing page: it must be there before the thread runs (post-copy). Part of the room "threads".
#pragma once

#include <vector>

#include "engine/model/address_range.h"
#include "engine/tracee/memory.h"
#include "engine/wire/state.pb.h"

namespace godwit::state {

/// Of the frozen process that `memory` reads, whose room "threads" said `threads`: whole pages, ascending,
/// disjoint; some may not be mapped. Errors: Corrupt.
Result<std::vector<AddressRange>> kernel_pages(const wire::RoomState& threads, const tracee::Memory& memory);

}  // namespace godwit::state
