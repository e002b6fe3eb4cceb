// Counts the shared mappings that anybody on this machine makes of certain files, so that one that was made,
// written to and removed again between two looks does not go unseen. Place in the pipeline: asked by
// migration/object_watch, before and after. Thread: one at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/result.h"

namespace godwit::ebpf {

class SharedMappings {
 public:
  /// Begins to hear mmap; every system call of this machine then costs some 0.2 us more until this is gone.
  /// Takes some milliseconds. Errors: Unsupported with the reason.
  static Result<SharedMappings> create();

  /// Counts from here on for `inode` (OpenFileFacts::inode). Its file must stay open as long. Errors: System.
  Status watch(uint64_t inode);

  /// Shared mappings made of it since watch(), of which a call may count twice, or for a file that it does
  /// not touch. A call that has not returned yet counts, too. Errors: System.
  [[nodiscard]] Result<uint64_t> count(uint64_t inode) const;
  /// Those that may be of any file. Errors: System.
  [[nodiscard]] Result<uint64_t> count_untold() const;

  SharedMappings(SharedMappings&&) noexcept;
  SharedMappings& operator=(SharedMappings&&) noexcept;
  ~SharedMappings();

 private:
  struct Loaded;
  explicit SharedMappings(std::unique_ptr<Loaded> loaded);

  std::unique_ptr<Loaded> loaded_;
};

}  // namespace godwit::ebpf
