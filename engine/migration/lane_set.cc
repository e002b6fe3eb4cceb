#include "engine/migration/lane_set.h"

#include <algorithm>

namespace godwit::migration {
namespace {

/// Addresses of one block share a lane: a run of pages stays whole within one, and a busy region still
/// spreads over all.
constexpr uint64_t kLaneBlock = 2_MiB;
/// Below it, waking threads costs more than they would save, and in a freeze they do not run at its priority.
constexpr uint64_t kWorthThreads = 8_MiB;
/// Small enough that source and peer work side by side, large enough that calls cost little.
constexpr uint64_t kLastChunk = 256_KiB;

unsigned helpers_for(size_t lanes) {
  return static_cast<unsigned>(std::min<size_t>(lanes, processors())) - 1;
}

}  // namespace

class LaneSet::Work {
 public:
  /// `failed`: of any share, and then the others need not go on.
  Work(Share& share, const tracee::Memory& memory, Pass pass, std::atomic<bool>& failed)
      : share_(share), lane_(*share.lane), memory_(memory), pass_(pass), failed_(failed) {}

  void run() {
    share_.outcome = send();
    if (!share_.outcome.ok()) failed_ = true;
  }

 private:
  Status send() {
    lane_.begin_round(pass_ == Pass::kBulk, pass_ == Pass::kLast);
    TRY(pass_ == Pass::kBulk ? send_whole() : send_in_groups());
    return lane_.flush();
  }

  Status send_whole() {
    for (const AddressRange& part : share_.parts) {
      if (failed_) return {};
      TRY(send_part(part));
    }
    return {};
  }

  /// Written pages lie scattered: they are read together, a chunk at a time. In the freeze each leaves at
  /// once, so that the peer installs it while the next is read.
  Status send_in_groups() {
    const bool last = pass_ == Pass::kLast;
    const std::span<const AddressRange> parts = share_.parts;
    for (size_t begin = 0, end = 0; begin < parts.size() && !failed_; begin = end) {
      uint64_t size = parts[end++].size();
      const uint64_t most = last ? kLastChunk : Lane::kChunk;
      while (end < parts.size() && size + parts[end].size() <= most) size += parts[end++].size();
      TRY(send_group(parts.subspan(begin, end - begin)));
      if (last) TRY(lane_.flush());
    }
    return {};
  }

  Status send_group(std::span<const AddressRange> group) {
    Status sent = lane_.send_again(memory_, group, pass_ == Pass::kLast);
    if (may_have_vanished(sent)) {
      for (const AddressRange& range : group) TRY(send_part(range));
      return {};
    }
    TRY(std::move(sent));
    share_.sent.insert(share_.sent.end(), group.begin(), group.end());
    return {};
  }

  Status send_part(AddressRange range) {
    Status sent = pass_ == Pass::kBulk ? lane_.send_first(memory_, range)
                                       : lane_.send_again(memory_, {&range, 1}, pass_ == Pass::kLast);
    if (may_have_vanished(sent)) {
      // Part of it was unmapped after the collect. The rest was collected and will not be told again: find
      // it.
      if (range.pages() == 1) return {};
      const RemoteAddr middle = range.start + range.pages() / 2 * kPageSize;
      TRY(send_part({range.start, middle}));
      return send_part({middle, range.end});
    }
    TRY(std::move(sent));
    share_.sent.push_back(range);
    return {};
  }

  [[nodiscard]] bool may_have_vanished(const Status& sent) const {
    return !sent.ok() && sent.error().err == EFAULT && pass_ != Pass::kLast;
  }

  Share& share_;
  Lane& lane_;
  const tracee::Memory& memory_;
  Pass pass_;
  std::atomic<bool>& failed_;
};

LaneSet::LaneSet(std::vector<std::unique_ptr<Lane>> lanes) : helpers_(helpers_for(lanes.size())) {
  for (auto& lane : lanes) shares_.push_back({std::move(lane), {}, {}, {}});
}

/// Returns the bytes dealt out.
uint64_t LaneSet::deal(const PageRuns& runs) {
  for (Share& share : shares_) {
    share.parts.clear();
    share.sent.clear();
  }
  uint64_t bytes = 0;
  for (const PageRun& run : runs) {
    for (RemoteAddr at = run.range.start; at < run.range.end;) {
      const uint64_t block = at.value() / kLaneBlock;
      const RemoteAddr block_end((block + 1) * kLaneBlock);
      const AddressRange part{at, std::min({run.range.end, at + Lane::kChunk, block_end})};
      shares_[block % shares_.size()].parts.push_back(part);
      bytes += part.size();
      at = part.end;
    }
  }
  return bytes;
}

Status LaneSet::send(const tracee::Memory& memory, const PageRuns& runs, Pass pass) {
  const uint64_t bytes = deal(runs);
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  // A lane is whoever's comes for it first, so that one thread alone does all in the end.
  const auto work = [&](unsigned) {
    for (size_t i = next++; i < shares_.size(); i = next++) Work(shares_[i], memory, pass, failed).run();
  };
  if (bytes < kWorthThreads)
    work(0);
  else
    helpers_.run(work);
  for (Share& share : shares_) TRY(std::exchange(share.outcome, Status()));
  return {};
}

void LaneSet::discard(AddressRange range) {
  for (Share& share : shares_) share.lane->discard(range);
}

void LaneSet::watch_huge(const std::vector<AddressRange>& areas) {
  for (Share& share : shares_) share.lane->sent().watch(areas);
}

std::optional<RemoteAddr> LaneSet::find_filled(RemoteAddr start) const {
  static_assert(kLaneBlock % kHugePageSize == 0);
  return shares_[start.value() / kLaneBlock % shares_.size()].lane->sent().find_filled(start);
}

PageCounts LaneSet::counts() const {
  PageCounts sum;
  for (const Share& share : shares_) sum += share.lane->counts();
  return sum;
}

uint64_t LaneSet::wire_bytes() const {
  uint64_t sum = 0;
  for (const Share& share : shares_) sum += share.lane->wire_bytes();
  return sum;
}

}  // namespace godwit::migration
