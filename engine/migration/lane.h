// One ordered stream of page records: reads pages of the source, encodes them and writes them, with an
// encoder that remembers what went over it. Stage: memory_sender -> lane -> record writer. One lane a
// channel; addresses do not change lanes, so versions of a page cannot overtake each other. Thread: the
// sender's.
#pragma once

#include <memory>
#include <vector>

#include "engine/base/clock.h"
#include "engine/codec/encoder.h"
#include "engine/migration/page_counts.h"
#include "engine/tracee/memory.h"
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

class Lane {
 public:
  static constexpr uint64_t kChunk = 1_MiB;  ///< read at once; fits a batch

  /// `cache_bytes`: for the bases of deltas. Errors: Usage, System.
  static Result<std::unique_ptr<Lane>> create(wire::RecordWriter& writer, size_t cache_bytes);

  void begin_round(bool bulk);
  /// Pages that the peer does not have yet; `range` is at most kChunk. Where the link is slower than a copy,
  /// they become the bases of deltas already. Errors: of the memory (EFAULT: a part is not mapped), of the
  /// writer.
  Status send_first(const tracee::Memory& memory, AddressRange range);
  /// Pages that may be there, at most kChunk together; `last`: there is no later send. As above.
  Status send_again(const tracee::Memory& memory, std::span<const AddressRange> ranges, bool last);
  /// The destination's contents of `range` changed otherwise.
  void discard(AddressRange range) { encoder_.discard(0, range); }
  /// Everything encoded is with the writer, and on its way.
  Status flush();

  [[nodiscard]] const PageCounts& counts() const { return counts_; }
  [[nodiscard]] uint64_t wire_bytes() const { return wire_bytes_; }

 private:
  Lane(wire::RecordWriter& writer, wire::PageBatchWriter batch, codec::PageEncoder encoder)
      : writer_(writer), batch_(std::move(batch)), encoder_(std::move(encoder)), staging_(kChunk) {}

  Status send_whole(const tracee::Memory& memory, AddressRange range);
  Status place(RemoteAddr at, size_t pages);
  Status send_encoded(const tracee::Memory& memory, std::span<const AddressRange> ranges,
                      codec::KeepBase keep);
  Status encode(RemoteAddr at, codec::PageView bytes, codec::KeepBase keep);
  bool commit(RemoteAddr at, codec::EncodedPage encoded);
  void count(codec::PageEncoding encoding);
  Status write_batch();

  wire::RecordWriter& writer_;
  wire::PageBatchWriter batch_;
  codec::PageEncoder encoder_;
  std::vector<std::byte> staging_;
  LinkRate rate_;
  PageCounts counts_;
  uint64_t wire_bytes_ = 0;
};

}  // namespace godwit::migration
