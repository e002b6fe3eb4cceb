// Which other processes hold a pipe, socket or the like: found by the link that /proc/PID/fd/N shows.
#pragma once

#include <sys/types.h>

#include <map>
#include <set>
#include <string>

namespace godwit::state {

struct Holder {
  pid_t pid = 0;
  pid_t parent = 0;
  int fd = -1;
  std::string comm;
};

/// The first holder of each link among all processes but `own`. Reads all of /proc/*/fd: about 1 us a
/// descriptor of the machine, so for check() only. Processes that may not be looked into, or end meanwhile,
/// are left out.
std::map<std::string, Holder> find_holders(pid_t own, const std::set<std::string>& links);

/// "pid 12 (nginx), fd 4"
std::string to_text(const Holder& holder);

}  // namespace godwit::state
