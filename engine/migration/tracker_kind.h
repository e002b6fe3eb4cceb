// Which way to see writes: the person's wish, and what became of it. Place in the pipeline: before the
// tracker is armed. Thread: any.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/base/kernel_features.h"
#include "engine/base/result.h"

namespace godwit::migration {

enum class TrackerKind : uint8_t {
  kAuto = 0,  ///< a wish only: the first of the others that this kernel has
  kEbpf,      ///< a wish only: kUffd, with a log of write faults that says where to look
  kUffd,      ///< asynchronous write-protection (6.7)
  kUffdSync,  ///< a handler of ours answers each first write (5.14)
};

/// As the command line and the reports call them: "auto", "ebpf", "uffd", "uffd-sync".
std::string_view to_string(TrackerKind kind);

/// What marks the pages for `wish` on such a kernel: kUffd or kUffdSync. Errors: Unsupported.
Result<TrackerKind> choose_tracker(TrackerKind wish, const KernelFeatures& kernel = kernel_features());

/// What `auto` ends at here; tries the log of write faults on this process. Errors: Unsupported.
Result<TrackerKind> probe_tracker();

}  // namespace godwit::migration
