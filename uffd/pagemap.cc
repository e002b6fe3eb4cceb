#include "uffd/pagemap.h"

#include <fmt/format.h>
#include <unistd.h>

namespace godwit::uffd {

Result<std::span<const uint64_t>> read_pagemap(int pagemap_fd, RemoteAddr at, RemoteAddr end,
                                               std::span<uint64_t> scratch) {
  constexpr uint64_t kHugePage = 2_MiB;
  uint64_t stop = at.value() + (scratch.size() << kPageShift);
  const uint64_t boundary = stop & ~(kHugePage - 1);
  if (boundary > at.value()) stop = boundary;
  stop = std::min(stop, end.value());
  const size_t want = (stop - at.value()) >> kPageShift;
  const ssize_t got = ::pread(pagemap_fd, scratch.data(), want * sizeof scratch[0],
                              static_cast<off_t>((at.value() >> kPageShift) * sizeof scratch[0]));
  // KERNEL: the end of the file, and no error, when the address space is gone.
  if (got > 0) return std::span<const uint64_t>(scratch.first(static_cast<size_t>(got) / sizeof scratch[0]));
  return fail_errno("read /proc/PID/pagemap", fmt::format("at {}", at), got < 0 ? errno : ESRCH);
}

}  // namespace godwit::uffd
