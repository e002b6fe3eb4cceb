// A kernel setting that is changed for a while and put back.
// Thread: any; /proc/sys/net shows the network namespace of the calling thread.
#pragma once

#include <string>

#include "engine/base/result.h"

namespace godwit::address {

struct SysctlChange {
  std::string path;  ///< below /proc/sys/net/
  std::string before;
  std::string during;
  bool operator==(const SysctlChange&) const = default;
};

/// The setting as it is now, to become `during`. Errors: TargetGone when this kernel has no such setting.
Result<SysctlChange> plan_sysctl(const std::string& path, const std::string& during);
Status apply(const SysctlChange& change);
/// Writes `before` unless that is the value already; a setting that is gone (with its device) is no error.
Status restore(const SysctlChange& change);

}  // namespace godwit::address
