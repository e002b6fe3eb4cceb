// Shared memory objects on the source: found by layout and descriptors, carried by content. Nobody's page
// tables tell of all writes to them (other processes, write(2) by descriptor, hole punching), so each pass
// hashes every page and sends those that differ from what was sent: never wrong, at the price of a read of
// the whole object.
#pragma once

#include <map>
#include <vector>

#include "engine/base/units.h"
#include "engine/migration/batch_sender.h"
#include "engine/state/memory_objects.h"
#include "engine/wire/page_batch_writer.h"
#include "engine/wire/record_writer.h"

namespace godwit::migration {

class ObjectSender {
 public:
  /// Borrows both, which are of one channel.
  static Result<ObjectSender> create(wire::RecordWriter& writer, BatchSender& sender);

  /// Announces objects that are new or have another size, as a description record of room "memory-objects".
  /// `frozen`: the sizes are final. Before, none shrinks at the peer: that would take pages from private
  /// mappings there, which here are new ones by now, over the object grown again.
  Status announce(std::vector<state::ObjectSource> objects, bool frozen);
  [[nodiscard]] bool knows(uint64_t id) const { return known_.contains(id); }
  /// Sends what differs from what was last sent. In the freeze it is the last word. Returns the pages sent.
  Result<uint64_t> pass();

 private:
  struct Known {
    state::ObjectSource source;
    std::vector<uint64_t> hashes;  ///< XXH3 of what the destination holds, by page; 0: zeros (never sent)
  };
  ObjectSender(wire::RecordWriter& writer, BatchSender& sender, wire::PageBatchWriter batch)
      : writer_(&writer), sender_(&sender), batch_(std::move(batch)), buffer_(1_MiB) {}
  Status pass_object(Known& known, uint64_t& pages);
  Status pass_chunk(Known& known, uint64_t offset, size_t bytes, uint64_t& pages);

  wire::RecordWriter* writer_;
  BatchSender* sender_;
  wire::PageBatchWriter batch_;
  std::vector<std::byte> buffer_;
  std::map<uint64_t, Known> known_;
};

}  // namespace godwit::migration
