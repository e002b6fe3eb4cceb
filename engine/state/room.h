// One kind of process state is one room with the same four doors:
//
//   check    (process)          -> findings      before anything is touched
//   capture  (frozen process)   -> message       in the freeze; a room that is `described` also while the
//   source runs prepare  (shell, message)                    while the source still runs, with the
//   description finish   (shell, message)                    in the freeze, with the final message
//
// Messages are protobufs, serialised (engine/wire/rooms_*.proto); only the room itself reads them. A new kind
// of state is a new room and one line in registry.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "engine/state/context.h"

namespace godwit::state {

/// State of the process as a whole.
struct Room {
  std::string_view name;
  bool described;  ///< captured and prepared while the source runs, too; otherwise prepare is never called
  Status (*check)(const CheckContext&, Findings&);
  /// May return Retry: a bad instant (a lock held, a connection not yet accepted); the freeze is undone and
  /// retried.
  Result<std::string> (*capture)(CaptureContext&);
  Status (*prepare)(BuildContext&, std::string_view description);
  Status (*finish)(BuildContext&, std::string_view message);
  /// finish() makes the kernel write to the process' memory (rseq, ...), so it runs after the last page.
  /// ORDER: a delta of the last pass must find its base unchanged.
  bool waits_for_memory = false;
};

/// State behind a descriptor: the same doors, once for each open file description that the room claims.
struct DescriptorRoom {
  std::string_view name;
  bool (*claims)(const OpenFile&);
  Status (*check)(const CheckContext&, const OpenFile&, Findings&);
  Result<std::string> (*capture)(CaptureContext&, const OpenFile&);
  /// Opens or creates it: returns its descriptor, any number at or above parking_base is chosen by the caller
  /// after. Called with the description, or in the freeze for what appeared since. Its fcntl flags, owner and
  /// number are the caller's business.
  Result<int> (*prepare)(BuildContext&, std::string_view message);
  /// Brings the prepared description to its final state (offset, queues, counters). `fd` is its final number.
  Status (*finish)(BuildContext&, int fd, std::string_view message);
  /// Optional: what needs every descriptor in its final place (epoll's interest list). Null for most.
  Status (*wire_up)(BuildContext&, int fd, std::string_view message);
  /// Optional: the part of the message that prepare() depends on. What was prepared is used in finish() if
  /// this (and OpenFile::key) is still the same; null: if the key is.
  std::string (*identity)(std::string_view message) = nullptr;
};

/// In the order in which finish() runs: credentials last.
std::span<const Room> rooms();
/// In the order in which claims() is asked.
std::span<const DescriptorRoom> descriptor_rooms();

/// Parses a room's message. Errors: Corrupt naming the room.
template <typename Message>
Result<Message> parse_message(std::string_view room, std::string_view bytes) {
  Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return fail(ErrorKind::kCorrupt, "parse the message of a room", std::string(room),
                "the stream is damaged, or from an incompatible version");
  return message;
}

}  // namespace godwit::state
