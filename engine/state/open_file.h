// The descriptors of a process, grouped by the open file description they share (dup, fork: one offset, one
// set of flags). Read from /proc and kcmp without touching the process.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/tracee/process.h"

namespace godwit::state {

struct Descriptor {
  int number = -1;
  bool close_on_exec = false;
};

/// What kind of socket it is: SO_DOMAIN, SO_TYPE, SO_PROTOCOL.
struct SocketKind {
  int domain = 0;
  int type = 0;
  int protocol = 0;
};

/// One open file description with all descriptors of the process that refer to it.
struct OpenFile {
  std::vector<Descriptor> descriptors;  ///< ascending by number; never empty
  std::string link;       ///< what /proc/PID/fd/N points to: "/x", "socket:[123]", "anon_inode:[eventfd]"
  std::string fdinfo;     ///< the text of /proc/PID/fdinfo/N
  struct stat status {};  ///< of the file behind it
  int flags = 0;          ///< O_ACCMODE and status flags, without O_CLOEXEC
  int64_t position = 0;   ///< bytes
  std::optional<SocketKind> socket;

  [[nodiscard]] int number() const { return descriptors.front().number; }
  /// "fd 7 (socket:[123])"
  [[nodiscard]] std::string subject() const;
  /// Equal for two looks at the same (or an interchangeable) description: link, flags and lowest number.
  [[nodiscard]] std::string key() const;
};

/// Sorted by lowest number. A socket is duplicated for an instant to ask what it is. A descriptor closed
/// while the process runs is left out. About 10 us a descriptor. Errors: TargetGone, Denied.
Result<std::vector<OpenFile>> read_open_files(const tracee::Process& process);

}  // namespace godwit::state
