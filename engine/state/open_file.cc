#include "engine/state/open_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>
#include <optional>

#include "engine/base/files.h"

namespace godwit::state {
namespace {

/// Nothing when the socket was closed meanwhile.
std::optional<SocketKind> socket_kind(const tracee::Process& process, int number) {
  const auto copy = process.pidfd().get_fd(number);
  if (!copy.ok()) return std::nullopt;
  SocketKind kind;
  const auto ask = [&](int option, int& value) {
    socklen_t length = sizeof value;
    return ::getsockopt(copy.value().get(), SOL_SOCKET, option, &value, &length) == 0;
  };
  if (!ask(SO_DOMAIN, kind.domain) || !ask(SO_TYPE, kind.type) || !ask(SO_PROTOCOL, kind.protocol))
    return std::nullopt;
  return kind;
}

std::optional<OpenFile> read_one(const tracee::Process& process, int number) {
  const std::string name = process.path(fmt::format("fd/{}", number));
  auto link = read_link(name);
  auto info = read_file(process.path(fmt::format("fdinfo/{}", number)));
  OpenFile file;
  if (!link.ok() || !info.ok() || ::stat(name.c_str(), &file.status) != 0) return std::nullopt;
  file.link = link.take();
  file.fdinfo = info.take();
  const auto flags = parse_number(field(file.fdinfo, "flags:").value_or("0"), 8).value_or(0);
  file.flags = static_cast<int>(flags) & ~O_CLOEXEC;
  file.position = static_cast<int64_t>(parse_number(field(file.fdinfo, "pos:").value_or("0")).value_or(0));
  if (S_ISSOCK(file.status.st_mode) && (flags & O_PATH) == 0) file.socket = socket_kind(process, number);
  file.descriptors.push_back({number, (flags & O_CLOEXEC) != 0});
  return file;
}

/// KERNEL: kcmp orders descriptions (0: the same, 1: less, 2: greater), so that a sorted group is searched by
/// halves. Anything else (a descriptor closed meanwhile) counts as greater.
int compare(pid_t pid, int a, int b) {
  const long order = ::syscall(SYS_kcmp, pid, pid, KCMP_FILE, a, b);
  return order == 0 ? 0 : (order == 1 ? -1 : 1);
}

/// Indices into `files`, sorted by description.
using Group = std::vector<size_t>;

/// Where the description of `number` is in the group or belongs; `twin` says which.
Group::iterator find_place(pid_t pid, Group& group, const std::vector<OpenFile>& files, int number,
                           bool& twin) {
  twin = false;
  auto low = group.begin();
  for (auto high = group.end(); low != high;) {
    const auto middle = low + (high - low) / 2;
    const int order = compare(pid, files[*middle].number(), number);
    if (order == 0) {
      twin = true;
      return middle;
    }
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

std::string OpenFile::subject() const {
  return fmt::format("fd {} ({})", number(), link);
}
std::string OpenFile::key() const {
  return fmt::format("{}|{:o}|{}", number(), flags, link);
}

Result<std::vector<OpenFile>> read_open_files(const tracee::Process& process) {
  std::vector<OpenFile> files;
  // Only descriptors that look alike can share a description: kcmp is asked within such groups alone.
  std::map<std::string, Group> alike;
  for (const int number : TRY(process.fds())) {
    auto one = read_one(process, number);
    if (!one) continue;
    auto& group = alike[fmt::format("{}|{}|{:o}", one->link, one->position, one->flags)];
    bool twin = false;
    const auto place = find_place(process.pid(), group, files, number, twin);
    if (twin) {
      files[*place].descriptors.push_back(one->descriptors.front());
    } else {
      group.insert(place, files.size());
      files.push_back(std::move(*one));
    }
  }
  return files;
}

}  // namespace godwit::state
