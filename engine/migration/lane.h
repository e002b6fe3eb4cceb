// One ordered stream of page records: reads pages of the source, encodes them and writes them, with an
// encoder that remembers what went over it. Stage: memory_sender -> lane -> batch sender. One lane a
// channel; addresses do not change lanes, so versions of a page cannot overtake each other. Thread: the
// sender's.
#pragma once

#include <memory>
#include <vector>

#include "engine/codec/encoder.h"
#include "engine/migration/batch_sender.h"
#include "engine/migration/page_counts.h"
#include "engine/migration/sent_hashes.h"
#include "engine/tracee/memory.h"
#include "engine/wire/page_batch_writer.h"

namespace godwit::migration {

class Lane {
 public:
  static constexpr uint64_t kChunk = 1_MiB;  ///< read at once; fits a batch

  /// Borrows `sender`. `cache_bytes`: for the bases of deltas. Errors: Usage, System.
  static Result<std::unique_ptr<Lane>> create(BatchSender& sender, size_t cache_bytes);

  /// `last`: the process stands still meanwhile.
  void begin_round(bool bulk, bool last);
  /// Pages that the peer does not have yet; `range` is at most kChunk. Where the link is slower than a copy,
  /// they become the bases of deltas already. Errors: of the memory (EFAULT: a part is not mapped), of the
  /// writer.
  Status send_first(const tracee::Memory& memory, AddressRange range);
  /// Pages that may be there, at most kChunk together; `last`: there is no later send. As above.
  Status send_again(const tracee::Memory& memory, std::span<const AddressRange> ranges, bool last);
  /// The destination's contents of `range` changed otherwise.
  void discard(AddressRange range) {
    encoder_.discard(0, range);
    sent_.forget(range);
  }
  /// Of hugetlbfs, what of a huge page needs no sending.
  SentHashes& sent() { return sent_; }
  /// Everything encoded is with the sender, and on its way.
  Status flush();

  [[nodiscard]] const PageCounts& counts() const { return counts_; }
  [[nodiscard]] uint64_t wire_bytes() const { return wire_bytes_; }

 private:
  Lane(BatchSender& sender, wire::PageBatchWriter batch, codec::PageEncoder encoder)
      : sender_(sender), batch_(std::move(batch)), encoder_(std::move(encoder)), staging_(kChunk) {}

  Status send_whole(const tracee::Memory& memory, AddressRange range);
  Status place(RemoteAddr at, size_t pages);
  Status send_encoded(const tracee::Memory& memory, std::span<const AddressRange> ranges,
                      codec::KeepBase keep);
  Status encode(RemoteAddr at, codec::PageView bytes, codec::KeepBase keep);
  bool commit(RemoteAddr at, codec::EncodedPage encoded);
  void count(codec::PageEncoding encoding);
  Status write_batch();

  BatchSender& sender_;
  wire::PageBatchWriter batch_;
  codec::PageEncoder encoder_;
  SentHashes sent_;
  std::vector<std::byte> staging_;
  PageCounts counts_;
  uint64_t wire_bytes_ = 0;
};

}  // namespace godwit::migration
