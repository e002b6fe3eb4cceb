#include "engine/state/epoll_info.h"

#include <cstdio>
#include <string>

#include "engine/base/files.h"

namespace godwit::state {

Result<std::vector<EpollEntry>> parse_epoll_info(std::string_view fdinfo) {
  std::vector<EpollEntry> entries;
  for (const std::string_view line : split(fdinfo, '\n')) {
    if (!line.starts_with("tfd:")) continue;
    int number = 0;
    unsigned events = 0;
    unsigned long long data = 0;
    unsigned long long inode = 0;
    const std::string text(line);
    // NOLINTNEXTLINE(cert-err34-c): the kernel prints these numbers itself
    if (std::sscanf(text.c_str(), "tfd: %d events: %x data: %llx pos:%*d ino:%llx", &number, &events, &data,
                    &inode) != 4)
      return fail(ErrorKind::kCorrupt, "parse the fdinfo of an epoll instance", text,
                  "this kernel prints it otherwise");
    entries.push_back({number, events, data, inode});
  }
  return entries;
}

}  // namespace godwit::state
