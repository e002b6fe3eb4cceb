#include "uffd/page_installer.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::uffd {
namespace {

constexpr size_t kCopyBatch = 1_MiB;  // UFFDIO_COPY: 64 KiB to 1 MiB measured best
constexpr size_t kForceBatch =
    64_KiB;                         // how much goes by /proc/PID/mem before process_vm_writev is tried again
constexpr size_t kReadBatch = 512;  // iovecs a process_vm_readv (UIO_MAXIOV is 1024)
constexpr uint64_t kPopulated = uapi::kPageIsPresent | uapi::kPageIsSwapped;

alignas(kPageSize) constexpr std::array<std::byte, 64_KiB> kZeros{};

Result<Fd> open_proc(pid_t pid, const char* name, int flags) {
  const std::string path = fmt::format("/proc/{}/{}", pid, name);
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd.valid()) return fd;
  Error error = fail_errno("open", path);
  if (error.err == ENOENT) error.kind = ErrorKind::kTargetGone;
  return error;
}

iovec remote_iovec(RemoteAddr at, size_t size) {
  return {reinterpret_cast<void*>(at.value()),
          size};  // NOLINT(performance-no-int-to-ptr): another process's address
}

std::string subject(pid_t pid, RemoteAddr at) {
  return fmt::format("pid {} at {}", pid, at);
}

}  // namespace

Result<PageInstaller> PageInstaller::create(pid_t pid) {
  Fd memory = TRY(open_proc(pid, "mem", O_RDWR));
  Fd pagemap = TRY(open_proc(pid, "pagemap", O_RDONLY));
  return PageInstaller(pid, std::move(memory), std::move(pagemap));
}

Status PageInstaller::register_fresh(const std::vector<AddressRange>& ranges,
                                     const std::vector<AddressRange>& left_out) {
  fresh_.clear();
  // ORDER: what is not in fresh_ is written to at once; registered, it would put the writer to sleep.
  for (const AddressRange range : left_out) TRY(uffd_.unregister_range(range));
  for (const AddressRange range : ranges) {
    const Status status = uffd_.register_range(range, UFFDIO_REGISTER_MODE_MISSING);
    if (status.ok()) {
      fresh_.push_back(range);
    } else if (status.error().kind != ErrorKind::kUnsupported) {
      TRY(uffd_.check_alive());
      return Error(status.error());
    }
  }
  std::sort(fresh_.begin(), fresh_.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
  return {};
}

void PageInstaller::end_fresh() {
  uffd_ = Uffd();
  fresh_.clear();
}

template <typename Each>
Status PageInstaller::split_by_phase(AddressRange range, Each each) const {
  RemoteAddr at = range.start;
  auto area = std::lower_bound(fresh_.begin(), fresh_.end(), at,
                               [](const AddressRange& r, RemoteAddr a) { return r.end <= a; });
  for (; area != fresh_.end() && area->start < range.end; ++area) {
    const AddressRange part = intersect(*area, range);
    if (at < part.start) TRY(each(AddressRange{at, part.start}, false));
    TRY(each(part, true));
    at = part.end;
  }
  if (at < range.end) TRY(each(AddressRange{at, range.end}, false));
  return {};
}

template <typename Each>
Status PageInstaller::split_by_presence(AddressRange range, Each each) const {
  std::array<uapi::PageRegion, 64> scratch{};
  PageRegions found;
  const ScanQuery query{0, 0, kPopulated, kPopulated | uapi::kPageIsPfnZero};
  TRY(scan_pagemap(pagemap_.get(), range, query, scratch, found));
  RemoteAddr at = range.start;
  for (const uapi::PageRegion& region : found) {
    const AddressRange part = range_of(region.start, region.end);
    if (at < part.start) TRY(each(AddressRange{at, part.start}, 0));
    TRY(each(part, region.categories));
    at = part.end;
  }
  if (at < range.end) TRY(each(AddressRange{at, range.end}, 0));
  return {};
}

Status PageInstaller::install_run(AddressRange range, std::span<const std::byte> bytes) const {
  CHECK(range.size() == bytes.size());
  const auto bytes_of = [&](AddressRange part) {
    return bytes.subspan(part.start - range.start, part.size());
  };
  return split_by_phase(range, [&](AddressRange part, bool registered) -> Status {
    if (!registered) return write(part.start, bytes_of(part));
    return split_by_presence(part, [&](AddressRange piece, uint64_t categories) -> Status {
      return categories != 0 ? write(piece.start, bytes_of(piece))
                             : fill_missing(piece.start, bytes_of(piece));
    });
  });
}

Status PageInstaller::install_zeros(AddressRange range, Absent absent) const {
  return split_by_phase(range, [&](AddressRange part, bool registered) -> Status {
    return split_by_presence(part, [&](AddressRange piece, uint64_t categories) -> Status {
      if ((categories & uapi::kPageIsPfnZero) != 0) return {};
      if (categories != 0) return write_zeros(piece);
      if (absent == Absent::kZero) return {};
      return registered ? zero_missing(piece) : write_zeros(piece);
    });
  });
}

Status PageInstaller::fill_missing(RemoteAddr at, std::span<const std::byte> bytes) const {
  size_t batch = kCopyBatch;
  while (!bytes.empty()) {
    Result<Filled> filled = uffd_.copy(at, bytes.first(std::min(batch, bytes.size())));
    // KERNEL: one copy must lie within one area; where a run crosses areas, page after page does.
    if (!filled.ok() && filled.error().err == ENOENT && batch > kPageSize) {
      batch = kPageSize;
      continue;
    }
    // A page of an area that was unmapped and mapped anew since begin_fresh(): not registered, so nothing
    // blocks.
    if (!filled.ok() && filled.error().err == ENOENT) filled = Filled{};
    size_t done = TRY(std::move(filled)).bytes;
    if (done == 0) {
      // The page is there already (of a shared object, say, without being mapped): touching it cannot block.
      TRY(write(at, bytes.first(kPageSize)));
      done = kPageSize;
    }
    at = at + done;
    bytes = bytes.subspan(done);
  }
  return {};
}

Status PageInstaller::zero_missing(AddressRange range) const {
  for (RemoteAddr at = range.start; at < range.end;) {
    // Page after page where the run crosses areas, as in fill_missing.
    Result<Filled> filled = uffd_.zero_page({at, range.end});
    if (!filled.ok() && filled.error().err == ENOENT) filled = uffd_.zero_page({at, at + kPageSize});
    if (!filled.ok() && filled.error().err == ENOENT)
      filled = Filled{};  // no longer registered, as in fill_missing
    const size_t done = TRY(std::move(filled)).bytes;
    if (done == 0) TRY(write_zeros({at, at + kPageSize}));
    at = at + std::max(done, kPageSize);
  }
  return {};
}

Status PageInstaller::write(RemoteAddr at, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const iovec local{const_cast<std::byte*>(bytes.data()), bytes.size()};
    const iovec remote = remote_iovec(at, bytes.size());
    ssize_t done = ::process_vm_writev(pid_, &local, 1, &remote, 1, 0);
    if (done < 0 && errno != EFAULT) return fail_errno("process_vm_writev", subject(pid_, at));
    if (done <= 0) {
      // The area is not writable for the process itself.
      const size_t part = std::min(kForceBatch, bytes.size());
      TRY(write_by_force(at, bytes.first(part)));
      done = static_cast<ssize_t>(part);
    }
    at = at + static_cast<size_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return {};
}

Status PageInstaller::write_by_force(RemoteAddr at, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(memory_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at.value()));
    if (done < 0) {
      Error error = fail_errno("write /proc/PID/mem", subject(pid_, at));
      error.remedy = "nothing is mapped there, or it is a shared mapping that cannot be written";
      return error;
    }
    // KERNEL: zero bytes, and no error, when the address space is gone.
    if (done == 0) return fail(ErrorKind::kTargetGone, "write /proc/PID/mem", subject(pid_, at));
    at = at + static_cast<size_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return {};
}

Status PageInstaller::write_zeros(AddressRange range) const {
  for (RemoteAddr at = range.start; at < range.end;) {
    const size_t part = std::min<size_t>(kZeros.size(), range.end - at);
    TRY(write(at, std::span(kZeros).first(part)));
    at = at + part;
  }
  return {};
}

/// One scan from the first page to the last, of what is registered in between.
Result<std::vector<bool>> PageInstaller::find_touchable(std::span<const RemoteAddr> pages) const {
  CHECK(std::is_sorted(pages.begin(), pages.end()));
  std::vector<bool> touchable(pages.size(), true);
  if (fresh_.empty() || pages.empty()) return touchable;
  size_t i = 0;
  const AddressRange all{pages.front(), pages.back() + kPageSize};
  TRY(split_by_phase(all, [&](AddressRange part, bool registered) -> Status {
    while (i < pages.size() && pages[i] < part.start) i++;
    if (i == pages.size() || pages[i] >= part.end || !registered) return {};
    return split_by_presence(part, [&](AddressRange piece, uint64_t categories) -> Status {
      for (; i < pages.size() && pages[i] < piece.end; i++) touchable[i] = categories != 0;
      return {};
    });
  }));
  return touchable;
}

Status PageInstaller::read_pages(std::span<const RemoteAddr> pages, std::span<std::byte> out) const {
  CHECK(out.size() == pages.size() * kPageSize);
  const std::vector<bool> touchable = TRY(find_touchable(pages));
  std::vector<Piece> plan;
  for (size_t i = 0; i < pages.size(); i++) {
    const std::span<std::byte> into = out.subspan(i * kPageSize, kPageSize);
    const bool joins = !plan.empty() && plan.back().at + plan.back().out.size() == pages[i] &&
                       plan.back().out.data() + plan.back().out.size() == into.data();
    if (!touchable[i])
      std::memset(into.data(), 0, into.size());
    else if (joins)
      plan.back().out = {plan.back().out.data(), plan.back().out.size() + kPageSize};
    else
      plan.push_back({pages[i], into});
  }
  for (size_t i = 0; i < plan.size(); i += kReadBatch) {
    TRY(read(std::span(plan).subspan(i, std::min(kReadBatch, plan.size() - i))));
  }
  return {};
}

Status PageInstaller::install_scattered(std::span<const RemoteAddr> pages,
                                        std::span<const std::byte> bytes) const {
  CHECK(bytes.size() == pages.size() * kPageSize);
  const std::vector<bool> touchable = TRY(find_touchable(pages));
  for (size_t i = 0; i < pages.size();) {
    size_t end = i;
    std::array<iovec, kReadBatch> remote;
    while (end < pages.size() && end - i < remote.size() && touchable[end]) {
      remote[end - i] = remote_iovec(pages[end], kPageSize);
      end++;
    }
    if (end == i) {
      TRY(fill_missing(pages[i], bytes.subspan(i * kPageSize, kPageSize)));
      i++;
      continue;
    }
    const iovec local{const_cast<std::byte*>(bytes.data()) + i * kPageSize, (end - i) * kPageSize};
    const ssize_t done = ::process_vm_writev(pid_, &local, 1, remote.data(), end - i, 0);
    if (done < 0 && errno != EFAULT) return fail_errno("process_vm_writev", subject(pid_, pages[i]));
    i += done < 0 ? 0 : static_cast<size_t>(done) / kPageSize;
    // It stopped at this page: its area is not writable for the process itself.
    if (i < end) {
      TRY(write(pages[i], bytes.subspan(i * kPageSize, kPageSize)));
      i++;
    }
  }
  return {};
}

Status PageInstaller::read(std::span<const Piece> plan) const {
  std::array<iovec, kReadBatch> local, remote;
  while (!plan.empty()) {
    for (size_t i = 0; i < plan.size(); i++) {
      local[i] = {plan[i].out.data(), plan[i].out.size()};
      remote[i] = remote_iovec(plan[i].at, plan[i].out.size());
    }
    const ssize_t got = ::process_vm_readv(pid_, local.data(), plan.size(), remote.data(), plan.size(), 0);
    if (got < 0 && errno != EFAULT) return fail_errno("process_vm_readv", subject(pid_, plan[0].at));
    size_t left = got < 0 ? 0 : static_cast<size_t>(got);
    while (!plan.empty() && left >= plan[0].out.size()) {
      left -= plan[0].out.size();
      plan = plan.subspan(1);
    }
    if (plan.empty()) break;
    // It stopped in this piece: an area that the process itself may not read.
    TRY(read_by_force(plan[0]));
    plan = plan.subspan(1);
  }
  return {};
}

Status PageInstaller::read_by_force(const Piece& piece) const {
  RemoteAddr at = piece.at;
  for (std::span<std::byte> out = piece.out; !out.empty();) {
    const ssize_t got = ::pread(memory_.get(), out.data(), out.size(), static_cast<off_t>(at.value()));
    if (got < 0) return fail_errno("read /proc/PID/mem", subject(pid_, at));
    if (got == 0) return fail(ErrorKind::kTargetGone, "read /proc/PID/mem", subject(pid_, at));
    at = at + static_cast<size_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

}  // namespace godwit::uffd
