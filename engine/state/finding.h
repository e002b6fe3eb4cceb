// What check() has to say about a process: each finding names the fd, mapping or property, says why it
// matters and what to do. A fatal one refuses the migration (exit code 3); the others are told and then
// accepted.
#pragma once

#include <string>
#include <vector>

#include "engine/base/result.h"

namespace godwit::state {

struct Finding {
  std::string room;     ///< "tcp", "address-space"
  std::string subject;  ///< "fd 7 (socket:[4711])", "mapping 7f00-7f10 (/dev/dri/card0)"
  std::string what;     ///< "an inotify instance"
  std::string why;      ///< "its watches cannot be carried over"
  std::string remedy;   ///< "close it before the migration"
  bool fatal = true;
};

using Findings = std::vector<Finding>;

bool any_fatal(const Findings& findings);
/// One line: "tcp: fd 7 (socket:[4711]): what: why; remedy".
std::string to_line(const Finding& finding);
/// The same, when it stands in the way of a capture. kRetry: it was not there at the check, and may be gone
/// in a moment.
Error capture_error(ErrorKind kind, const Finding& finding,
                    SourceLocation origin = SourceLocation::current());

}  // namespace godwit::state
