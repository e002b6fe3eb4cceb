// Every kind of record, in one table: number, name, size limit, who sends it, what its payload is.
// The wire's vocabulary; docs/wire-format.md is its prose. Pure values, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace google::protobuf {
class Message;
}

namespace godwit::wire {

/// Numbers are forever: a record that is no longer sent keeps its number. Groups leave room to grow.
enum class RecordType : uint32_t {
  kInvalid = 0,
  // greeting
  kHello = 1,
  kInventory = 2,
  kFindings = 3,
  // memory and rounds
  kLayout = 16,
  kPages = 17,
  kDiscard = 18,
  kObjectPages = 19,
  kRoundBegin = 20,
  kRoundEnd = 21,
  kBarrier = 22,
  kLastRound = 23,
  kAck = 24,
  kProgress = 25,
  kPageHashes = 26,
  kPacked = 27,
  kMissing = 28,
  kPageRequest = 29,
  kResident = 30,
  kPostcopy = 31,
  // state of the rooms
  kDescription = 32,  ///< a room's state captured while the source still runs
  kFrozen = 33,
  kState = 34,  ///< a room's state captured inside the freeze
  kEndOfState = 35,
  // handover
  kPrepared = 48,
  kCommit = 49,
  kRunning = 50,
  kAbort = 51,
  kQuery = 52,
  kVerdict = 53,
  // clocks, end
  kClockPing = 64,
  kClockPong = 65,
  kEnd = 66,
};

/// Set in the type word of a record that a reader may skip when it does not know the type.
constexpr uint32_t kOptionalBit = 0x80000000;

enum class Direction : uint8_t {
  kInvalid = 0,
  kForward,   ///< from the source engine (or an image) to the destination
  kBackward,  ///< from the destination to the source
  kBoth,
};

struct RecordInfo {
  RecordType type = RecordType::kInvalid;
  std::string_view name;
  uint32_t max_payload = 0;  ///< bytes
  Direction direction = Direction::kInvalid;
  /// The message in the payload; nullptr for a page batch and for a packed one, which have their own binary
  /// framing.
  const google::protobuf::Message& (*prototype)() = nullptr;
};

/// All of them, ascending by number.
std::span<const RecordInfo> all_records();
/// Nullptr when this build does not know the type.
const RecordInfo* find_record(RecordType type);
/// "pages", or "type 4711" when this build does not know it.
std::string record_name(RecordType type);
std::string_view to_string(Direction direction);

/// The most that a record of an unknown type may carry; a longer one is taken for damage.
constexpr uint32_t kMaxUnknownPayload = 1 << 20;

}  // namespace godwit::wire
