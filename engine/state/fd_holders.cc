#include "engine/state/fd_holders.h"

#include <fmt/format.h>
#include <unistd.h>

#include "engine/base/files.h"

namespace godwit::state {
namespace {

void look_into(pid_t pid, const std::set<std::string>& links, std::map<std::string, Holder>& found) {
  const auto numbers = list_numbers(fmt::format("/proc/{}/fd", pid));
  if (!numbers.ok()) return;
  for (const int fd : numbers.value()) {
    const auto link = read_link(fmt::format("/proc/{}/fd/{}", pid, fd));
    if (!link.ok() || !links.contains(link.value()) || found.contains(link.value())) continue;
    const auto status = read_file(fmt::format("/proc/{}/status", pid));
    if (!status.ok()) return;  // it ended meanwhile
    const auto parent = parse_number(trim(field(status.value(), "PPid:").value_or("")));
    found[link.value()] = {pid, static_cast<pid_t>(parent.value_or(0)), fd,
                           std::string(trim(field(status.value(), "Name:").value_or("?")))};
  }
}

}  // namespace

std::map<std::string, Holder> find_holders(pid_t own, const std::set<std::string>& links) {
  std::map<std::string, Holder> found;
  if (links.empty()) return found;
  const auto pids = list_numbers("/proc");
  if (!pids.ok()) return found;
  for (const pid_t pid : pids.value())
    if (pid != own) look_into(pid, links, found);
  return found;
}

std::string to_text(const Holder& holder) {
  return fmt::format("pid {} ({}), fd {}", holder.pid, holder.comm, holder.fd);
}

}  // namespace godwit::state
