// The source's half of the memory pipeline: tracker -> reader -> encoder -> page records, for one process.
// Decides nothing: precopy.cc says when to do a round, this says what a round is. One thread drives it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/codec/encoder.h"
#include "engine/model/dirty_tracker.h"
#include "engine/model/page_set.h"
#include "engine/model/vma.h"
#include "engine/tracee/memory.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/record_writer.h"

namespace godwit::migration {

struct PageCounts {
  uint64_t sent = 0;  ///< pages that travelled in any form
  uint64_t zero = 0;
  uint64_t xbzrle = 0;
  uint64_t raw = 0;
  uint64_t unchanged = 0;  ///< written, but equal to what the destination holds
  uint64_t discarded = 0;  ///< gone at the source after they were sent
};

/// One ordered stream of page records with the encoder that remembers what went over it.
struct Lane {
  wire::RecordWriter* writer = nullptr;
  wire::PageBatchWriter batch;
  codec::PageEncoder encoder;
  std::vector<std::byte> staging;

  static Result<std::unique_ptr<Lane>> create(wire::RecordWriter& writer, size_t cache_bytes);
};

class MemorySender {
 public:
  using LaneOf = std::function<size_t(RemoteAddr)>;  ///< constant within 2 MiB

  MemorySender(const tracee::Memory& memory, DirtyTracker& tracker, std::vector<std::unique_ptr<Lane>> lanes,
               LaneOf lane_of)
      : memory_(memory), tracker_(tracker), lanes_(std::move(lanes)), lane_of_(std::move(lane_of)) {}

  /// Takes over the layout: vanished areas are forgotten, new ones wait for track(). Private-file and
  /// anonymous areas are carried in rounds; shared files only in the last pass (their storage may be common
  /// to both hosts).
  void follow(const Layout& layout);
  /// True if there are areas that are not under the tracker yet.
  [[nodiscard]] bool has_untracked() const { return !unregistered_.empty(); }
  /// Puts them there, as they are in `now`, the layout of a process that stands still.
  Status track(const Layout& now);

  /// Pages written since the last collect, for a round. INVARIANT: whatever is written after a page was
  /// collected is collected again, so that reading later than the scan can only send something newer.
  Result<PageRuns> collect();
  /// For the freeze: written pages of all areas, shared files included, and (in `discarded`) those that the
  /// destination holds and the source does not any more; `guards`: guard regions.
  struct LastPass {
    PageRuns written;
    std::vector<AddressRange> discarded;
    std::vector<AddressRange> guards;
  };
  Result<LastPass> survey();

  /// Reads, encodes and sends. `bulk`: first arrivals, sent whole without looking for a base.
  Status send(const PageRuns& runs, bool bulk, bool last);
  /// Everything encoded is handed to the writers.
  Status flush();

  [[nodiscard]] const PageCounts& counts() const { return counts_; }
  [[nodiscard]] uint64_t raw_bytes() const { return raw_bytes_; }    ///< of the pages sent
  [[nodiscard]] uint64_t wire_bytes() const { return wire_bytes_; }  ///< of the records that carried them

 private:
  Status send_part(Lane& lane, AddressRange range, bool bulk, bool last);
  Status send_bulk(Lane& lane, AddressRange range);
  Status send_encoded(Lane& lane, AddressRange range, bool last);
  Status place_bulk(Lane& lane, RemoteAddr at, size_t pages);
  Status write_batch(Lane& lane);
  Status add_unmarked(PageRuns& found);
  Status survey_all(const Vma& vma, LastPass& last);
  Status survey_changes(const Vma& vma, LastPass& last);
  Status add_reverted(const Vma& vma, LastPass& last);
  void add_written(const Vma& vma, const PageRun& run, LastPass& last);
  void forget(AddressRange range);
  static bool commit(Lane& lane, RemoteAddr at, codec::EncodedPage encoded);
  void count(codec::PageEncoding encoding);

  const tracee::Memory& memory_;
  DirtyTracker& tracker_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  LaneOf lane_of_;
  Layout layout_;                           ///< what is mapped now
  std::vector<AddressRange> tracked_;       ///< under the tracker, or wanted there; ascending
  std::vector<AddressRange> unregistered_;  ///< wanted, but not under the tracker yet
  std::vector<AddressRange> untrackable_;   ///< re-sent whole in the freeze
  std::vector<AddressRange>
      fresh_;             ///< tracked since the last collect: every populated page counts as written
  PageSet held_;          ///< what the destination has got from us
  PageSet shared_files_;  ///< pages of shared files written since the start
  PageCounts counts_;
  uint64_t raw_bytes_ = 0;
  uint64_t wire_bytes_ = 0;
};

}  // namespace godwit::migration
