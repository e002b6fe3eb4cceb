// Reading and writing another process's memory, in as few calls as the kernel allows.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/base/fd.h"
#include "engine/base/result.h"
#include "engine/model/address_range.h"

namespace godwit::tracee {

/// Any thread may use it; needs no ptrace stop. Holds /proc/PID/mem open for pages that the areas' protection
/// hides.
class Memory {
 public:
  static Result<Memory> open(pid_t pid);

  /// Fills all of `out`. Errors: TargetGone; System with EFAULT when a part is not mapped.
  Status read(RemoteAddr from, std::span<std::byte> out) const;
  /// Ranges one after the other into `out` (sizes must add up), by process_vm_readv in batches of 512 ranges,
  /// and through /proc/PID/mem for what is not readable by its own protection (PROT_NONE). Errors as read():
  /// the error's subject names the first range that failed.
  Status read_ranges(std::span<const AddressRange> ranges, std::span<std::byte> out) const;
  /// Through /proc/PID/mem when the area is not writable (a private page is made, as a debugger's breakpoint
  /// is).
  Status write(RemoteAddr to, std::span<const std::byte> bytes) const;

  template <typename T>
  Result<T> read_value(RemoteAddr from) const {
    T out;
    TRY(read(from, std::as_writable_bytes(std::span(&out, 1))));
    return out;
  }
  Result<std::string> read_string(RemoteAddr from, size_t limit) const;

  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = 0;
  Fd mem_;
};

}  // namespace godwit::tracee
