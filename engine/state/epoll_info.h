// The interest list of an epoll instance as fdinfo prints it. Pure.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace godwit::state {

struct EpollEntry {
  int number = -1;  ///< under which it was added
  uint32_t events = 0;
  uint64_t data = 0;
  uint64_t inode = 0;
};

/// Lines "tfd: N events: X data: X pos:N ino:X sdev:X". Errors: Corrupt naming the line.
Result<std::vector<EpollEntry>> parse_epoll_info(std::string_view fdinfo);

}  // namespace godwit::state
