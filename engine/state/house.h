// All rooms at once: the doors opened in order. What the migration calls.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/state/context.h"
#include "engine/state/room.h"
#include "engine/wire/state.pb.h"

namespace godwit::state {

/// Every room's check on a running process, nothing touched. Errors: TargetGone, Denied.
Result<Findings> check_all(const CheckContext& context);

/// The rooms' messages in the order of finish(). While the source runs only `described` rooms are asked.
/// `each` is called with every message as soon as it is there.
Status capture_all(CaptureContext& context, const std::function<Status(const wire::RoomState&)>& each);

/// The destination: opens prepare() or finish() of the room named in `message`. Shell thread.
/// Errors: Unsupported for a room that this build does not know.
Status prepare_room(BuildContext& context, const wire::RoomState& message);
Status finish_room(BuildContext& context, const wire::RoomState& message);
/// True if the room's finish() makes the kernel write to the process' memory: it waits for the last page.
Result<bool> waits_for_memory(const std::string& room);

}  // namespace godwit::state
