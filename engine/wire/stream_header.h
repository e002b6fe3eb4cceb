// The first 40 bytes of every stream, on the wire (each direction of each channel) and on disk.
// Their layout and checksum never change, in no version: an engine of the past can always tell what it was
// offered.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/result.h"
#include "engine/model/record_stream.h"

namespace godwit::wire {

/// A reader takes any stream of its own major version; a new minor adds only what an old reader may skip.
constexpr uint16_t kWireMajor = 1;
constexpr uint16_t kWireMinor = 3;

using SessionId = std::array<std::byte, 16>;

struct StreamHeader {
  uint16_t major = kWireMajor;
  uint16_t minor = kWireMinor;
  uint16_t channel = 0;   ///< index of this channel in its session
  uint16_t channels = 1;  ///< how many the session has
  SessionId session{};
  bool operator==(const StreamHeader&) const = default;
};

constexpr size_t kStreamHeaderSize = 40;
using StreamHeaderBytes = std::array<std::byte, kStreamHeaderSize>;

StreamHeaderBytes encode(const StreamHeader& header);

/// Errors: Corrupt (not a godwit stream, or damaged), Unsupported (another major version; both are named).
Result<StreamHeader> decode(const StreamHeaderBytes& bytes);

/// 16 random bytes. Errors: System.
Result<SessionId> new_session_id();
std::string to_hex(const SessionId& session);

/// What the records of this stream are hashed with, so that a record of another session or channel is
/// noticed.
uint64_t checksum_seed(const StreamHeader& header);

}  // namespace godwit::wire
