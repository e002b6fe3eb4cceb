#include "engine/state/house.h"

#include <algorithm>

#include "engine/base/clock.h"
#include "engine/base/log.h"

namespace godwit::state {
namespace {

Result<const Room*> find_room(const std::string& name) {
  const auto all = rooms();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Room& room) { return room.name == name; });
  if (found == all.end())
    return fail(ErrorKind::kUnsupported, "rebuild state of a kind this build does not know", name,
                "use the same version of godwit on both hosts");
  return &*found;
}

}  // namespace

Result<Findings> check_all(const CheckContext& context) {
  Findings findings;
  for (const Room& room : rooms()) TRY(room.check(context, findings));
  return findings;
}

Status capture_all(CaptureContext& context, const std::function<Status(const wire::RoomState&)>& each) {
  for (const Room& room : rooms()) {
    if (context.frozen == nullptr && !room.described) continue;
    wire::RoomState message;
    message.set_room(std::string(room.name));
    const Nanos begin = monotonic_now();
    message.set_payload(TRY(room.capture(context)));
    if (context.frozen != nullptr)
      log_debug("{} captured in {} us", room.name, to_micros(monotonic_now() - begin));
    TRY(each(message));
  }
  return {};
}

Status prepare_room(BuildContext& context, const wire::RoomState& message) {
  return TRY(find_room(message.room()))->prepare(context, message.payload());
}

Status finish_room(BuildContext& context, const wire::RoomState& message) {
  return TRY(find_room(message.room()))->finish(context, message.payload());
}

Result<bool> waits_for_memory(const std::string& room) {
  return TRY(find_room(room))->waits_for_memory;
}

}  // namespace godwit::state
