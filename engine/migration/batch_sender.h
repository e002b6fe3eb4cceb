// Page batches of one channel, packed where that pays, onto its stream. Stage: lane, object_sender ->
// batch_sender -> record writer. One a channel, shared by all that fills batches for it; the sender's thread.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "engine/base/clock.h"
#include "engine/migration/packing_policy.h"
#include "engine/migration/page_counts.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/record_writer.h"

namespace godwit::migration {

/// What the last few MiB needed to leave: the slower of the link and the peer.
class LinkRate {
 public:
  void add(size_t bytes, Nanos blocked);
  /// Bytes a second. Nothing is known of a link before the first window: it counts as fast.
  [[nodiscard]] double bytes_per_second() const { return rate_; }

 private:
  static constexpr size_t kWindow = 8_MiB;
  double rate_ = 1e12;
  size_t bytes_ = 0;
  Nanos blocked_{};
};

/// Whether it is the peer that the writer waits for, not the link; none where there is no peer.
using PeerIsBehind = std::function<bool()>;

class BatchSender {
 public:
  /// Borrows `writer`.
  BatchSender(wire::RecordWriter& writer, Compression wanted, PeerIsBehind peer_is_behind)
      : writer_(writer), policy_(wanted, !peer_is_behind), peer_is_behind_(std::move(peer_is_behind)) {}
  BatchSender(const BatchSender&) = delete;
  BatchSender& operator=(const BatchSender&) = delete;

  /// As long as one lives, batches are being filled. What passes between belongs to nobody.
  class Filling {
   public:
    explicit Filling(BatchSender& sender) : sender_(sender) {
      sender_.filling_ = true;
      sender_.mark_ = monotonic_now();
    }
    ~Filling() {
      sender_.filling_ = false;
      sender_.produced_ += monotonic_now() - sender_.mark_;
    }
    Filling(const Filling&) = delete;
    Filling& operator=(const Filling&) = delete;

   private:
    BatchSender& sender_;
  };

  void set_goal(PackingGoal goal) { goal_ = goal; }
  /// Empties the batch; nothing if it is empty already. Returns the bytes that left for it. Errors: of the
  /// writer.
  Result<size_t> write(wire::PageBatchWriter& batch);
  /// Everything written is on its way.
  Status flush() { return writer_.flush(); }

  /// A link on which a copy of each page, or packing it, costs no time.
  [[nodiscard]] bool is_slow() const;
  [[nodiscard]] const PackedCounts& packed() const { return packed_; }

 private:
  [[nodiscard]] std::span<const std::byte> pack(wire::PageBatchWriter& batch, wire::Packing packing);
  void count(const wire::PageBatchWriter& batch, wire::Packing packing, size_t sent);

  wire::RecordWriter& writer_;
  PackingPolicy policy_;
  PeerIsBehind peer_is_behind_;
  wire::Packer packer_;
  PackingGoal goal_ = PackingGoal::kThroughput;
  LinkRate rate_;
  PackedCounts packed_;
  bool filling_ = false;
  Nanos mark_{};      ///< if so, since when
  Nanos produced_{};  ///< what the batch that is being filled took so far
};

}  // namespace godwit::migration
