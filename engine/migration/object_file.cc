#include "engine/migration/object_file.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine/base/units.h"

namespace godwit::migration {

Status ObjectFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  TRY(require_inside(offset, bytes.size()));
  if (huge_) return write_mapped(offset, bytes);
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno("write a shared memory object", "");
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

/// The file itself would grow with every page behind its end. Its last page may be there in part only.
Status ObjectFile::require_inside(uint64_t offset, uint64_t size) {
  const uint64_t end = offset + size;
  if (end <= room_.load(std::memory_order_relaxed)) return {};
  struct stat found {};
  if (::fstat(fd_.get(), &found) != 0) return fail_errno("fstat", "a shared memory object");
  const uint64_t room = page_ceil(static_cast<uint64_t>(found.st_size));
  room_.store(room, std::memory_order_relaxed);
  if (end <= room) return {};
  return fail(ErrorKind::kCorrupt, "write a shared memory object", fmt::format("{:#x} of {:#x}", end, room),
              "the page lies behind its end");
}

/// KERNEL: a store to a huge page that cannot be had ends in SIGBUS; process_vm_writev to ourselves says so.
Status ObjectFile::write_mapped(uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  TRY(map_up_to(offset + bytes.size()));
  const iovec from{const_cast<std::byte*>(bytes.data()), bytes.size()};
  const iovec to{window_.data() + offset, bytes.size()};
  const ssize_t put = ::process_vm_writev(::getpid(), &from, 1, &to, 1, 0);
  if (put == static_cast<ssize_t>(bytes.size())) return {};
  Error error = fail_errno("write a shared memory object of hugetlbfs", fmt::format("at {:#x}", offset),
                           put < 0 && errno != EFAULT ? errno : ENOSPC);
  error.remedy = "reserve more huge pages of 2048 kB on this host";
  return error;
}

Status ObjectFile::map_up_to(uint64_t end) {
  if (end <= window_.size()) return {};
  struct stat found {};
  if (::fstat(fd_.get(), &found) != 0) return fail_errno("fstat", "a shared memory object");
  const auto size = static_cast<uint64_t>(found.st_size);
  if (end > size)
    return fail(ErrorKind::kCorrupt, "write a shared memory object", fmt::format("{:#x} of {:#x}", end, size),
                "the page lies behind its end");
  // Nothing is reserved: its mappings in the process do that.
  window_ = TRY(Mapping::create(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_.get()));
  // KERNEL: a fork of this engine (postcopy's keeper) would keep it mapped, and what somebody maps to write
  // cannot be sealed.
  if (::madvise(window_.data(), window_.size(), MADV_DONTFORK) != 0)
    return fail_errno("madvise(MADV_DONTFORK)", "a shared memory object");
  return {};
}

}  // namespace godwit::migration
