#include "engine/wire/record_type.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/base/units.h"
#include "engine/wire/page_batch.h"
#include "engine/wire/postcopy.pb.h"
#include "engine/wire/state.pb.h"

namespace godwit::wire {

namespace {

template <typename T>
const google::protobuf::Message& prototype() {
  return T::default_instance();
}

constexpr uint32_t kSmall = 4_KiB;
constexpr uint32_t kMedium = 1_MiB;
constexpr uint32_t kLarge = 16_MiB;
constexpr uint32_t kHuge = 64_MiB;

using enum RecordType;
constexpr auto kForward = Direction::kForward;
constexpr auto kBackward = Direction::kBackward;
constexpr auto kBoth = Direction::kBoth;

constexpr std::array kRecords{
    RecordInfo{kHello, "hello", 64_KiB, kBoth, prototype<Hello>},
    RecordInfo{kInventory, "inventory", kLarge, kForward, prototype<Inventory>},
    RecordInfo{kFindings, "findings", kMedium, kBackward, prototype<Findings>},

    RecordInfo{kLayout, "layout", kLarge, kForward, prototype<LayoutMessage>},
    RecordInfo{kPages, "pages", kBatchRecord, kForward, nullptr},
    RecordInfo{kDiscard, "discard", kLarge, kForward, prototype<Discard>},
    RecordInfo{kObjectPages, "object_pages", kBatchRecord, kForward, nullptr},
    RecordInfo{kRoundBegin, "round_begin", kSmall, kForward, prototype<RoundBegin>},
    RecordInfo{kRoundEnd, "round_end", kSmall, kForward, prototype<RoundEnd>},
    RecordInfo{kBarrier, "barrier", kSmall, kForward, prototype<Barrier>},
    RecordInfo{kLastRound, "last_round", kSmall, kForward, prototype<LastRound>},
    RecordInfo{kAck, "ack", kSmall, kBackward, prototype<Ack>},
    RecordInfo{kProgress, "progress", kSmall, kBackward, prototype<Progress>},
    RecordInfo{kPageHashes, "page_hashes", kLarge, kForward, prototype<PageHashes>},
    RecordInfo{kPacked, "packed", kBatchRecord, kForward, nullptr},
    RecordInfo{kMissing, "missing", kLarge, kBoth, prototype<Missing>},
    RecordInfo{kPageRequest, "page_request", kSmall, kBackward, prototype<PageRequest>},
    RecordInfo{kResident, "resident", kSmall, kBackward, prototype<Resident>},
    RecordInfo{kPostcopy, "postcopy", kSmall, kForward, prototype<Postcopy>},

    RecordInfo{kDescription, "description", kHuge, kForward, prototype<RoomState>},
    RecordInfo{kFrozen, "frozen", kSmall, kForward, prototype<Frozen>},
    RecordInfo{kState, "state", kHuge, kForward, prototype<RoomState>},
    RecordInfo{kEndOfState, "end_of_state", kSmall, kForward, prototype<EndOfState>},

    RecordInfo{kPrepared, "prepared", kSmall, kBackward, prototype<Prepared>},
    RecordInfo{kCommit, "commit", kSmall, kForward, prototype<Commit>},
    RecordInfo{kRunning, "running", kMedium, kBackward, prototype<Running>},
    RecordInfo{kAbort, "abort", kMedium, kBoth, prototype<Abort>},
    RecordInfo{kQuery, "query", kSmall, kForward, prototype<Query>},
    RecordInfo{kVerdict, "verdict", kMedium, kBackward, prototype<Verdict>},

    RecordInfo{kClockPing, "clock_ping", kSmall, kBoth, prototype<Clock>},
    RecordInfo{kClockPong, "clock_pong", kSmall, kBoth, prototype<Clock>},
    RecordInfo{kEnd, "end", kSmall, kBoth, prototype<End>},
};

static_assert(std::is_sorted(kRecords.begin(), kRecords.end(),
                             [](const RecordInfo& a, const RecordInfo& b) { return a.type < b.type; }),
              "find_record() searches by number");

}  // namespace

std::span<const RecordInfo> all_records() {
  return kRecords;
}

const RecordInfo* find_record(RecordType type) {
  const auto* found = std::lower_bound(kRecords.begin(), kRecords.end(), type,
                                       [](const RecordInfo& r, RecordType t) { return r.type < t; });
  return found != kRecords.end() && found->type == type ? found : nullptr;
}

std::string record_name(RecordType type) {
  const RecordInfo* info = find_record(type);
  return info != nullptr ? std::string(info->name) : fmt::format("type {}", static_cast<uint32_t>(type));
}

std::string_view to_string(Direction direction) {
  switch (direction) {
    case Direction::kInvalid:
      return "invalid";
    case Direction::kForward:
      return "forward";
    case Direction::kBackward:
      return "backward";
    case Direction::kBoth:
      return "both";
  }
  return "invalid";
}

}  // namespace godwit::wire
