// The areas of another process under a userfaultfd: which there are, putting them under it, taking them out.
// Place in the pipeline: common to the trackers. Thread: the tracker's.
#pragma once

#include <sys/types.h>

#include <vector>

#include "uffd/uffd.h"

namespace godwit::uffd {

struct Area {
  AddressRange range;
  bool shared;
  bool file;  ///< of a file system, or an object of shared memory
};

/// /proc/PID/maps, ascending. Errors: TargetGone, System.
Result<std::vector<Area>> read_areas(pid_t pid);

/// Registers whole areas of a process that stands still for write-protection: one ioctl for each stretch of
/// adjacent ones, one an area where a stretch does not take it. Returns those that cannot be. Errors:
/// TargetGone, System.
Result<std::vector<AddressRange>> register_areas(const Uffd& uffd, const std::vector<AddressRange>& ranges);

/// Area by area, so that a running process does not wait for all of it at once; what fails is of no interest.
void unregister_areas(const Uffd& uffd, pid_t pid);

}  // namespace godwit::uffd
