// The source's half of post-copy, once the process runs at the destination: serves the frozen original's
// memory. What is asked for leaves at once, with some of what lies around it; the rest is pushed meanwhile,
// first what was written last. Place in the pipeline: the stage that memory_sender is before the freeze;
// below it lane, as there. Threads: serve() answers on the caller's, and makes one for each channel to push
// over.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/migration/compression.h"
#include "engine/migration/lane.h"
#include "engine/migration/report.h"
#include "engine/migration/serving_link.h"
#include "engine/model/page_set.h"
#include "engine/wire/postcopy.pb.h"

namespace godwit::migration {

class PostcopySource {
 public:
  /// Borrows `memory`, of a process that stands still. `missing`: all that the destination lacks; `hot`: what
  /// to push first. Both ascending, disjoint.
  PostcopySource(const tracee::Memory& memory, const std::vector<AddressRange>& missing,
                 const std::vector<AddressRange>& hot, Compression compress);

  /// Serves over `link` until everything has arrived; blocks. Errors: those of the link: it may be made anew,
  /// and this called again, after lacks(). Those of the memory, which end all.
  Status serve(ServingLink& link);
  /// The destination, asked anew, lacks these and no others. Errors: Corrupt, when there are some that it
  /// had.
  Status lacks(const std::vector<AddressRange>& missing);

  /// What the destination said at the end, and what was counted here.
  [[nodiscard]] PostcopyReport report() const;
  /// Bytes of pages not sent yet. Any thread.
  [[nodiscard]] uint64_t remaining() const {
    return unsent_pages_.load(std::memory_order_relaxed) * kPageSize;
  }

 private:
  Status answer_requests(ServingLink& link);
  void take_figures(const wire::Resident& told);
  Status answer(Lane& lane, RemoteAddr page);
  Status push(wire::RecordWriter& writer, const PeerIsBehind& is_peer_behind);
  Status push_all(Lane& lane);
  std::vector<AddressRange> take_group();
  std::vector<AddressRange> take_around(RemoteAddr page);
  uint64_t claim(AddressRange range, uint64_t most, std::vector<AddressRange>& into);
  void plan(const std::vector<AddressRange>& hot);

  const tracee::Memory& memory_;
  const Compression compress_;
  PageSet missing_;  ///< at the switch: nothing else is ever sent

  mutable std::mutex mutex_;  ///< of what follows
  PageSet unsent_;
  std::vector<AddressRange> queue_;  ///< all of unsent_ and more, in the order to push in; small pieces
  size_t next_ = 0;                  ///< of it
  std::optional<RemoteAddr> fault_;  ///< push from here on first
  /// Pages that are asked for one after the other.
  struct Stream {
    RemoteAddr next;
    unsigned requests = 0;
  };
  std::array<Stream, 8> streams_{};
  size_t oldest_ = 0;
  PostcopyReport report_;

  std::atomic<uint64_t> unsent_pages_ = 0;
  std::atomic<bool> over_ = false;  ///< all has arrived, or the link is broken
};

}  // namespace godwit::migration
