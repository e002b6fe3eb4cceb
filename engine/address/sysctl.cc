#include "engine/address/sysctl.h"

#include "engine/base/files.h"

namespace godwit::address {

Result<SysctlChange> plan_sysctl(const std::string& path, const std::string& during) {
  const std::string now = TRY(read_file(path));
  return SysctlChange{path, std::string(trim(now)), during};
}

Status apply(const SysctlChange& change) {
  if (change.before == change.during) return {};
  return write_file(change.path, change.during);
}

Status restore(const SysctlChange& change) {
  Result<std::string> now = read_file(change.path);
  if (!now.ok()) return now.error().err == ENOENT ? Status() : Status(now.take_error());
  if (trim(now.value()) == change.before) return {};
  return write_file(change.path, change.before);
}

}  // namespace godwit::address
