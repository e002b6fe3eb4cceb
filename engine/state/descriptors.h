// The room "descriptors": the table of file descriptors. It runs the descriptor rooms over all open file
// descriptions and knows what they have in common: numbers, close-on-exec, status flags, SIGIO owner.
// Destination side on the shell's thread, whose table of descriptors *is* the process's: an open() there
// opens in the process. Hence nothing here logs, and what is made before its number is free waits at a
// parking number.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/base/fd.h"
#include "engine/base/result.h"
#include "engine/state/context.h"
#include "engine/state/room.h"

namespace godwit::state {

// The doors of the room; registry.cc lists them.
Status check_descriptors(const CheckContext& ctx, Findings& findings);
Result<std::string> capture_descriptors(CaptureContext& ctx);
Status prepare_descriptors(BuildContext& ctx, std::string_view description);
/// Afterwards the process has exactly the descriptors of the message, except numbers at or above parking_base
/// (BuildContext::objects), which belong to others. ORDER: after the address space, for a sealed memfd takes
/// no new writable mapping.
Status finish_descriptors(BuildContext& ctx, std::string_view message);

/// The room that claims the file, or null.
const DescriptorRoom* room_of(const OpenFile& file);

// ---- for descriptor rooms
// --------------------------------------------------------------------------------------

/// Duplicates the description into this engine. Close it soon: a socket or pipe held here does not end when
/// the process closes it.
Result<Fd> duplicate(const CaptureContext& ctx, const OpenFile& file);
/// Moves `fd` to a number at or above ctx.parking_base, close-on-exec. The old number is closed.
Result<int> park(BuildContext& ctx, int fd, std::string_view subject);
/// A new description of what `fd` refers to, as open(2) of it would make. Shell's thread.
Result<int> reopen(int fd, int flags, std::string_view subject);
/// Remembers `fd` (parked) under `name` until all descriptors are in place.
Status keep_anchor(BuildContext& ctx, const std::string& name, int fd);
std::optional<int> anchor(const BuildContext& ctx, const std::string& name);
/// A duplicate of an anchor: the same description.
Result<int> take_anchor(const BuildContext& ctx, const std::string& name, std::string_view subject);

}  // namespace godwit::state
