// A userfaultfd of another process, driven from here. Place in the pipeline: below wp_tracker (source) and
// page_installer (destination). It is made inside the target (userfaultfd(2) belongs to the mm of its
// caller), taken out with pidfd_getfd and adopted here; the target's own number can be closed at once.
// Thread: the ioctls may be called from several threads; adopt, move and destruction belong to one.
//
// KERNEL: closing the last copy unregisters every area under the write lock of the mm: with write-protection
// each present page is visited and restored, 23 ms/GiB of 4K pages measured (tests/bench/tracker_bench), in
// which a running target's faults and mappings wait. Unregister area by area first (WpTracker::release), and
// never inside the freeze. A part of an area is not unregistered by itself, nor registered: that splits the
// area, and the program's mremap over both parts would fail.
#pragma once

#include <cstdint>
#include <span>

#include "engine/base/fd.h"
#include "engine/base/missing_uapi.h"
#include "engine/base/result.h"
#include "engine/model/address_range.h"

namespace godwit::uffd {

/// What one fill did: it goes on until the end, or until a page that is there already.
struct Filled {
  size_t bytes = 0;      ///< installed, from the start on
  bool present = false;  ///< the page at `start + bytes` exists already and was left alone
};

class Uffd {
 public:
  Uffd() = default;

  /// Takes over `fd`, fresh from userfaultfd(2) (no UFFDIO_API yet), and shakes hands for `features`.
  /// Errors: Unsupported when the kernel lacks one of them (the fd is lost), System.
  static Result<Uffd> adopt(Fd fd, uint64_t features);

  /// One that the kernel has set up already: that of a child, out of a fork event.
  static Uffd take_over(Fd fd) { return Uffd(std::move(fd)); }

  /// `modes` is of UFFDIO_REGISTER_MODE_*. All of `range` that is mapped must allow them, else nothing
  /// changes. Again with the same fd is fine. Errors: TargetGone; Unsupported (EINVAL, EPERM: a kind of area
  /// that cannot; EBUSY: it belongs to another userfaultfd); System.
  [[nodiscard]] Status register_range(AddressRange range, uint64_t modes) const;
  [[nodiscard]] Status unregister_range(AddressRange range) const;

  /// Installs `bytes` (whole pages) as new pages at `at`, in a range registered for missing pages, and wakes
  /// who waits for them. Errors: TargetGone, Retry (the layout is changing), System (ENOENT: not registered,
  /// or not in one area).
  [[nodiscard]] Result<Filled> copy(RemoteAddr at, std::span<const std::byte> bytes) const;
  /// The same with the zero page. Private anonymous and shared memory only.
  [[nodiscard]] Result<Filled> zero_page(AddressRange range) const;
  /// Wakes the threads that wait for a page of `range`.
  [[nodiscard]] Status wake(AddressRange range) const;

  /// Takes write-protection, and the marks of it, off `range`, and wakes who waits for a page of it. Errors:
  /// TargetGone; Retry: a part is not, or no longer, registered for it, or is a part of a huge page of
  /// hugetlbfs; before 6.4 also when `range` is not in one area.
  [[nodiscard]] Status unprotect(AddressRange range) const;
  /// Write-protects and marks the pages that are there. Errors as unprotect(); a part may be done then.
  [[nodiscard]] Status protect(AddressRange range) const;
  /// Whether `range` is the whole or a part of one registered area of private anonymous memory. Changes
  /// nothing. Errors: TargetGone, System.
  [[nodiscard]] Result<bool> covers(AddressRange range) const;
  /// The next faults that wait for a handler; 0 when there are none. Errors: System.
  [[nodiscard]] Result<size_t> read_faults(std::span<uffd_msg> faults) const;

  /// Ok while the address space lives; TargetGone after its process exited or called execve. Under a
  /// microsecond.
  [[nodiscard]] Status check_alive() const;

  [[nodiscard]] int get() const { return fd_.get(); }
  [[nodiscard]] bool valid() const { return fd_.valid(); }

 private:
  explicit Uffd(Fd fd) : fd_(std::move(fd)) {}
  [[nodiscard]] Status change_protection(AddressRange range, uint64_t mode) const;

  Fd fd_;
};

}  // namespace godwit::uffd
