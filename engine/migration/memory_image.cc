#include "engine/migration/memory_image.h"

#include <algorithm>

namespace godwit::migration {

Status MemoryImage::write(std::span<const std::byte> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  return {};
}

Status MemoryImage::rewrite(uint64_t position, std::span<const std::byte> bytes) {
  if (position > bytes_.size() || bytes.size() > bytes_.size() - position)
    return fail(ErrorKind::kBug, "rewrite", "an image in memory", "it is not that long");
  std::copy(bytes.begin(), bytes.end(), bytes_.begin() + static_cast<ptrdiff_t>(position));
  return {};
}

Status MemoryImage::Source::read(std::span<std::byte> bytes) {
  if (bytes.size() > left_.size())
    return fail(ErrorKind::kPeerGone, "read", "an image in memory", "it ends too early");
  std::copy_n(left_.begin(), bytes.size(), bytes.begin());
  left_ = left_.subspan(bytes.size());
  return {};
}

}  // namespace godwit::migration
