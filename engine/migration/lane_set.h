// Deals pages out to the lanes by their addresses and sends them, the lanes side by side. Stage:
// memory_sender
// -> lane_set -> lane. Thread: the sender's; each lane is on one thread at a time, its own or the sender's.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "engine/base/helper_pool.h"
#include "engine/migration/lane.h"
#include "engine/model/page_run.h"
#include "engine/tracee/memory.h"

namespace godwit::migration {

class LaneSet {
 public:
  /// At least one lane.
  explicit LaneSet(std::vector<std::unique_ptr<Lane>> lanes);

  enum class Pass : uint8_t {
    kInvalid = 0,
    kBulk,   ///< first arrivals: whole, without looking for a base
    kRound,  ///< what may be there already
    kLast,   ///< likewise, of a process that stands still, and there is no later send
  };
  /// Reads, encodes, sends and flushes. What vanished since `runs` were collected is left out, except in the
  /// last pass. Afterwards sent() tells what travelled. Errors: of the memory, of the writers.
  Status send(const tracee::Memory& memory, const PageRuns& runs, Pass pass);
  /// By the last send(); in no order.
  template <typename Each>  // void each(AddressRange)
  void for_each_sent(Each each) const {
    for (const Share& share : shares_)
      for (const AddressRange range : share.sent) each(range);
  }

  /// The destination's contents of `range` changed otherwise.
  void discard(AddressRange range);

  /// The areas of hugetlbfs, ascending, and of the huge page at `start` a page that was not zeros when it was
  /// sent (sent_hashes.h). Between two sends.
  void watch_huge(const std::vector<AddressRange>& areas);
  [[nodiscard]] std::optional<RemoteAddr> find_filled(RemoteAddr start) const;

  [[nodiscard]] PageCounts counts() const;    ///< but for `sent` and `discarded`
  [[nodiscard]] uint64_t wire_bytes() const;  ///< of the records that carried pages

 private:
  /// What one lane has to do. Kept from round to round for its room: the freeze should not touch new memory.
  struct Share {
    std::unique_ptr<Lane> lane;
    std::vector<AddressRange> parts;  ///< each at most Lane::kChunk
    std::vector<AddressRange> sent;
    Status outcome;
  };
  /// One send() of one share.
  class Work;

  uint64_t deal(const PageRuns& runs);

  std::vector<Share> shares_;
  HelperPool helpers_;
};

}  // namespace godwit::migration
