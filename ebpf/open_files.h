// Reads what the kernel knows of a thread's open files and tells nobody: who could write to a file through a
// mapping, and whether a timerfd that reads as unset is about to ring. Place in the pipeline: made before the
// freeze, asked by migration/object_watch (of this engine's own files) and by the room of timerfds (of the
// frozen process's). Thread: one at a time.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <vector>

#include "engine/base/result.h"

namespace godwit::ebpf {

struct OpenFileFacts {
  /// Of a timerfd; of any other file it means nothing. Not set, and not to ring: all three are nothing.
  struct Timer {
    bool queued = false;  ///< set, and not come due, or its interrupt has not been served yet
    bool rings = false;   ///< its interrupt is being served
    uint64_t ticks = 0;   ///< expirations that nobody read
    [[nodiscard]] bool idle() const { return !queued && !rings && ticks == 0; }
  };

  int fd = -1;
  uint64_t inode = 0;  ///< names the file to SharedMappings, as long as it is open
  /// Shared mappings of the file, by any process, that may be written to or made so; negative: sealed against
  /// them.
  int writable_mappings = 0;
  std::optional<Timer> timer;  ///< nothing where this kernel's timers look otherwise than we know
};

class OpenFiles {
 public:
  /// Loads the program for the descriptors of thread `tid` (a number of this process's pid namespace): some
  /// milliseconds. Errors: Unsupported with the reason when BPF is not permitted or the kernel has no BTF.
  static Result<OpenFiles> create(pid_t tid);

  /// Ascending by descriptor. Some 20 us and 0.5 us a descriptor. Errors: System.
  Result<std::vector<OpenFileFacts>> read();

  OpenFiles(OpenFiles&&) noexcept;
  OpenFiles& operator=(OpenFiles&&) noexcept;
  ~OpenFiles();

 private:
  struct Loaded;
  explicit OpenFiles(std::unique_ptr<Loaded> loaded);

  std::unique_ptr<Loaded> loaded_;
};

/// nullptr when `fd` is none of them.
const OpenFileFacts* find_facts(const std::vector<OpenFileFacts>& facts, int fd);

}  // namespace godwit::ebpf
