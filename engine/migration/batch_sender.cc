#include "engine/migration/batch_sender.h"

#include <sys/resource.h>

#include <algorithm>

namespace godwit::migration {
namespace {

using wire::Packing;

/// Deltas are short already, and a table of zero pages is nothing: batches of mostly whole pages are packed.
bool is_packable(const wire::PageBatchWriter& batch) {
  return batch.raw_bytes() >= 2 * kPageSize && batch.raw_bytes() >= batch.record_bytes() / 2;
}

/// What a piece of work took of this thread.
class Meter {
 public:
  Meter() : since_(monotonic_now()), processor_(read_clock(CLOCK_THREAD_CPUTIME_ID)), sleeps_(sleeps()) {}
  [[nodiscard]] Nanos since() const { return since_; }
  /// The part of `took` in which it slept. KERNEL: over a fast link, sending is work of this thread (copies,
  /// and over loopback all of the peer's protocol, too). And a thread that was only preempted did not wait.
  [[nodiscard]] Nanos waited(Nanos took) const {
    if (sleeps() == sleeps_) return Nanos{};
    return std::max(Nanos{}, took - (read_clock(CLOCK_THREAD_CPUTIME_ID) - processor_));
  }

 private:
  static long sleeps() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
  }

  Nanos since_, processor_;
  long sleeps_;
};

}  // namespace

void LinkRate::add(size_t bytes, Nanos blocked) {
  bytes_ += bytes;
  blocked_ += blocked;
  if (bytes_ < kWindow) return;
  const double seconds = std::max(to_seconds(blocked_), 1e-9);
  rate_ = static_cast<double>(bytes_) / seconds;
  bytes_ = 0;
  blocked_ = Nanos{};
}

bool BatchSender::is_slow() const {
  if (policy_.current() == Packing::kNone) return rate_.bytes_per_second() < kSlowLink;
  // Packing hides what a slow link would have us wait for.
  return policy_.link_bytes_per_second() < kSlowLink;
}

Result<size_t> BatchSender::write(wire::PageBatchWriter& batch) {
  if (batch.empty()) return size_t{0};
  const Nanos begin = monotonic_now();
  const bool packable = is_packable(batch);
  BatchCost cost;
  cost.plain = cost.sent = batch.record_bytes();
  cost.produce = std::exchange(produced_, {}) + (filling_ ? begin - mark_ : Nanos{});
  if (packable) cost.tried = policy_.next(goal_);
  const auto packed = pack(batch, cost.tried);
  const Meter sending;
  cost.pack = sending.since() - begin;
  if (packed.empty()) {
    TRY(writer_.write_batch(batch));
  } else {
    TRY(writer_.write(wire::RecordType::kPacked, packed));
    cost.sent = sizeof(wire::RecordHeader) + packed.size();
    count(batch, cost.tried, cost.sent);
    batch.clear();
  }
  mark_ = monotonic_now();
  const Nanos took = mark_ - sending.since();
  cost.waited = sending.waited(took);
  cost.copy = took - cost.waited;
  rate_.add(cost.sent, took);
  if (packable && goal_ == PackingGoal::kThroughput) {
    cost.peer_is_behind = peer_is_behind_ && peer_is_behind_();
    policy_.note(cost);
  }
  return cost.sent;
}

std::span<const std::byte> BatchSender::pack(wire::PageBatchWriter& batch, Packing packing) {
  if (packing == Packing::kNone) return {};
  return packer_.pack(packing, batch.type(), batch.finish().subspan(sizeof(wire::RecordHeader)));
}

void BatchSender::count(const wire::PageBatchWriter& batch, Packing packing, size_t sent) {
  ++(packing == Packing::kLz4 ? packed_.lz4 : packed_.zstd);
  packed_.pages += batch.raw_bytes() / kPageSize;
  packed_.bytes += batch.record_bytes();
  packed_.wire += sent;
}

}  // namespace godwit::migration
