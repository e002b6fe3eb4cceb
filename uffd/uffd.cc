#include "uffd/uffd.h"

#include <sys/ioctl.h>
#include <unistd.h>

namespace godwit::uffd {
namespace {

uffdio_range to_range(AddressRange range) {
  return {range.start.value(), range.size()};
}

/// Both fills answer alike: bytes done, or minus errno, in the last field.
Result<Filled> explain_fill(const char* operation, AddressRange range, int rc, int64_t done) {
  if (rc == 0) return Filled{range.size(), false};
  const int err = errno;
  // KERNEL: a present page in the middle ends the run with EAGAIN and the bytes done; as the first, with
  // EEXIST.
  if (done > 0) return Filled{static_cast<size_t>(done), false};
  if (err == EEXIST) return Filled{0, true};
  Error error = fail_errno(operation, fmt::format("range {}", range), err);
  if (err == ENOENT) error.remedy = "the range is not one area registered for missing pages";
  return error;
}

}  // namespace

Result<Uffd> Uffd::adopt(Fd fd, uint64_t features) {
  uffdio_api api{UFFD_API, features, 0};
  if (::ioctl(fd.get(), UFFDIO_API, &api) == 0) return Uffd(std::move(fd));
  Error error = fail_errno("UFFDIO_API", fmt::format("userfaultfd of the target, features {:#x}", features));
  if (error.err == EINVAL) error.kind = ErrorKind::kUnsupported;
  return error;
}

Status Uffd::register_range(AddressRange range, uint64_t modes) const {
  uffdio_register request{to_range(range), modes, 0};
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) == 0) return {};
  Error error = fail_errno("UFFDIO_REGISTER", fmt::format("range {}", range));
  // KERNEL: EPERM is an area that can never be written (MAP_SHARED of a file opened for reading), not a
  // privilege.
  if (error.err == EINVAL || error.err == EPERM || error.err == EBUSY) error.kind = ErrorKind::kUnsupported;
  return error;
}

Status Uffd::unregister_range(AddressRange range) const {
  uffdio_range request = to_range(range);
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &request) == 0) return {};
  return fail_errno("UFFDIO_UNREGISTER", fmt::format("range {}", range));
}

Result<Filled> Uffd::copy(RemoteAddr at, std::span<const std::byte> bytes) const {
  uffdio_copy request{at.value(), reinterpret_cast<uint64_t>(bytes.data()), bytes.size(), 0, 0};
  const int rc = ::ioctl(fd_.get(), UFFDIO_COPY, &request);
  return explain_fill("UFFDIO_COPY", {at, at + bytes.size()}, rc, request.copy);
}

Result<Filled> Uffd::zero_page(AddressRange range) const {
  uffdio_zeropage request{to_range(range), 0, 0};
  const int rc = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &request);
  return explain_fill("UFFDIO_ZEROPAGE", range, rc, request.zeropage);
}

Status Uffd::wake(AddressRange range) const {
  uffdio_range request = to_range(range);
  if (::ioctl(fd_.get(), UFFDIO_WAKE, &request) == 0) return {};
  return fail_errno("UFFDIO_WAKE", fmt::format("range {}", range));
}

Status Uffd::unprotect(AddressRange range) const {
  return change_protection(range, 0);
}

Status Uffd::protect(AddressRange range) const {
  return change_protection(range, UFFDIO_WRITEPROTECT_MODE_WP);
}

Status Uffd::change_protection(AddressRange range, uint64_t mode) const {
  uffdio_writeprotect request{to_range(range), mode};
  if (::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) == 0) return {};
  Error error = fail_errno("UFFDIO_WRITEPROTECT", fmt::format("range {}", range));
  // EINVAL: a part of a huge page of hugetlbfs, which has taken the place of what the caller knows of.
  if (error.err == ENOENT || error.err == EAGAIN || error.err == EINVAL) error.kind = ErrorKind::kRetry;
  return error;
}

Result<bool> Uffd::covers(AddressRange range) const {
  // KERNEL: only shared memory can be continued, so with anonymous memory this changes nothing; but whether
  // the range lies in one registered area is asked first (mm/userfaultfd.c, 5.13 to 6.18): ENOENT if not,
  // EINVAL if so.
  uffdio_continue request{to_range(range), 0, 0};
  if (::ioctl(fd_.get(), UFFDIO_CONTINUE, &request) == 0)
    return fail(ErrorKind::kBug, "UFFDIO_CONTINUE", fmt::format("range {}", range), "it is shared memory");
  if (errno == EINVAL) return true;
  if (errno == ENOENT) return false;
  return fail_errno("UFFDIO_CONTINUE", fmt::format("range {}", range));
}

Result<size_t> Uffd::read_faults(std::span<uffd_msg> faults) const {
  const ssize_t got = ::read(fd_.get(), faults.data(), faults.size_bytes());
  if (got >= 0) return static_cast<size_t>(got) / sizeof faults[0];
  if (errno == EAGAIN || errno == EINTR) return size_t{0};
  return fail_errno("read", "the target's userfaultfd");
}

Status Uffd::check_alive() const {
  // KERNEL: write-protecting takes a reference on the mm first and answers ESRCH when that is gone; the last
  // page of user space is never mapped, so with a living mm it changes nothing and answers ENOENT.
  uffdio_writeprotect request{{kUserSpaceEnd - kPageSize, kPageSize}, 0};
  if (::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) == 0 || errno != ESRCH) return {};
  return fail_errno("userfaultfd", "the target's address space (it exited or called execve)", ESRCH);
}

}  // namespace godwit::uffd
