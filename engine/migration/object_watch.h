// Tells whether an object of shared memory can have changed between two looks at it, without reading it.
// Place in the pipeline: object_sender asks before it reads an object, and again before it would read it the
// next time; that is what keeps the freeze from growing with memory that nobody writes to. Why nothing is
// missed: docs/decisions/objects-by-hash.md. Thread: the one that made it.
#pragma once

#include <sys/stat.h>

#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "ebpf/open_files.h"
#include "ebpf/shared_mappings.h"

namespace godwit::migration {

/// What was to be seen of an object at one moment.
struct ObjectLook {
  int64_t changed_s = 0;  ///< its ctime
  uint32_t changed_ns = 0;
  uint64_t size = 0, blocks = 0;
  uint64_t mappings_made = 0;
  bool mapped = true;    ///< somebody can write to it by a mapping
  bool settled = false;  ///< a write by descriptor from now on will change its ctime
};

/// Why the contents may be others than those that a reading found which began after `before`. INVARIANT: if
/// nothing, they are the same.
std::string_view why_changed(const ObjectLook& before, const ObjectLook& now);
inline bool is_unchanged(const ObjectLook& before, const ObjectLook& now) {
  return why_changed(before, now).empty();
}

class ObjectWatch {
 public:
  /// Errors: Unsupported with the reason; then every object has to be read.
  static Result<ObjectWatch> create();

  /// Looks at all of them, in this order; the descriptors are this thread's and stay open. Some 30 us, and a
  /// few for each. Whatever writes to one when this returns, or later, shows in the next look. Errors:
  /// System.
  Result<std::vector<ObjectLook>> look(std::span<const int> fds);

 private:
  ObjectWatch(ebpf::OpenFiles files, ebpf::SharedMappings mappings)
      : files_(std::move(files)), mappings_(std::move(mappings)) {}
  Status get_to_know(std::span<const int> fds);

  ebpf::OpenFiles files_;
  ebpf::SharedMappings mappings_;
  std::map<int, uint64_t> inodes_;  ///< by descriptor
};

}  // namespace godwit::migration
