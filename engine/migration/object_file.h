// The destination's hand on a memory object that is being filled. Place in the pipeline: the last stage for
// pages of objects, as uffd/page_installer is for those of mappings. Thread: any, also several at once.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <span>

#include "engine/base/fd.h"
#include "engine/base/mapping.h"
#include "engine/base/result.h"

namespace godwit::migration {

class ObjectFile {
 public:
  /// `huge`: an object of hugetlbfs.
  ObjectFile(Fd fd, bool huge) : fd_(std::move(fd)), huge_(huge) {}

  /// Errors: System (ENOSPC: no room, or no huge page left).
  Status write(uint64_t offset, std::span<const std::byte> bytes);

 private:
  Status require_inside(uint64_t offset, uint64_t size);
  Status write_mapped(uint64_t offset, std::span<const std::byte> bytes);
  Status map_up_to(uint64_t end);

  Fd fd_;
  bool huge_;
  std::atomic<uint64_t> room_{0};  ///< whole pages that it was found to have last
  std::mutex mutex_;
  Mapping window_;  ///< all of the object; hugetlbfs knows no write(2)
};

}  // namespace godwit::migration
