// Reads objects of shared memory and tells which of their pages differ from what was sent. Place in the
// pipeline: below object_sender. Holes are never read: that costs as much as data, and more memory.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/helper_pool.h"
#include "engine/base/result.h"
#include "engine/base/units.h"

namespace godwit::migration {

/// What stands for a page of zeros, a hole included. No other page has this hash.
constexpr uint64_t kZeros = 0;
uint64_t hash_page(std::span<const std::byte, kPageSize> page);

struct ReadableObject {
  int fd = -1;
  std::string subject;  ///< "object 0x12"
};

using OnExtent = std::function<Status(uint64_t begin, uint64_t end)>;
/// Tells all of begin..end (of whole pages), ascending, as holes and data. Holes may be told as data.
Status visit_extents(const ReadableObject& file, uint64_t begin, uint64_t end, const OnExtent& hole,
                     const OnExtent& data);

/// Fills `out`; behind the end of the object there are zeros.
Status read_object(const ReadableObject& file, uint64_t offset, std::span<std::byte> out);

/// Looks with several threads. Not thread-safe.
class ObjectScan {
 public:
  struct Found {
    std::vector<uint64_t> pages;  ///< their numbers, ascending
    uint64_t bytes = 0;           ///< read
  };

  /// The threads are made here, so not in a freeze.
  ObjectScan();
  /// Pages whose hash is not that in `sent`, which has one for each page of the object.
  Result<Found> find_differing(const ReadableObject& file, std::span<const uint64_t> sent);

 private:
  std::unique_ptr<HelperPool> pool_;
  std::vector<std::vector<std::byte>> buffers_;  ///< one a thread
};

}  // namespace godwit::migration
