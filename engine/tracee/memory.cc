#include "engine/tracee/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace godwit::tracee {
namespace {

constexpr size_t kRangesACall = 512;         // measured: as good as one contiguous read
constexpr uint64_t kStepThroughMem = 1_MiB;  // then process_vm_readv is tried again, for it is faster
constexpr uint64_t kBytesACall = 1024_MiB;   // the kernel takes less than 2 GiB a call

/// Where a long read stands: `index`, and `within` bytes into that range.
struct Cursor {
  std::span<const AddressRange> ranges;
  size_t index = 0;
  uint64_t within = 0;

  [[nodiscard]] bool done() const { return index == ranges.size(); }
  [[nodiscard]] uint64_t at() const { return ranges[index].start.value() + within; }
  [[nodiscard]] uint64_t left() const { return ranges[index].size() - within; }

  void advance(uint64_t bytes) {
    within += bytes;
    while (!done() && within >= ranges[index].size()) within -= ranges[index++].size();
  }

  /// The next vectors to read; returns their count, and their bytes in `total`.
  size_t gather(std::array<iovec, kRangesACall>& remote, uint64_t& total) const {
    size_t count = 0;
    total = 0;
    for (size_t i = index; i < ranges.size() && count < kRangesACall && total < kBytesACall; ++i) {
      const uint64_t skip = i == index ? within : 0;
      const uint64_t size = std::min(ranges[i].size() - skip, kBytesACall - total);
      remote[count++] = {reinterpret_cast<void*>(ranges[i].start.value() + skip), size};
      total += size;
    }
    return count;
  }
};

Error memory_error(const char* operation, pid_t pid, uint64_t from, uint64_t size, int err) {
  return fail_errno(operation, fmt::format("{:#x} ({} bytes) of pid {}", from, size, pid), err);
}

}  // namespace

Result<Memory> Memory::open(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/mem", pid);
  Memory memory;
  memory.pid_ = pid;
  memory.mem_ = Fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (memory.mem_.valid()) return memory;
  Error error = fail_errno("open", path);
  if (error.err == ENOENT) error.kind = ErrorKind::kTargetGone;
  return error;
}

Status Memory::read(RemoteAddr from, std::span<std::byte> out) const {
  const AddressRange range{from, from + out.size()};
  return read_ranges({&range, 1}, out);
}

Status Memory::read_ranges(std::span<const AddressRange> ranges, std::span<std::byte> out) const {
  uint64_t sum = 0;
  for (const AddressRange& range : ranges) {
    if (range.end < range.start)
      return fail(ErrorKind::kBug, "read memory", fmt::format("{} of pid {}", range, pid_));
    sum += range.size();
  }
  if (sum != out.size())
    return fail(ErrorKind::kBug, "read memory", fmt::format("pid {}", pid_),
                "the sizes of ranges and buffer differ");
  Cursor cursor{ranges};
  cursor.advance(0);  // over empty ranges at the front
  std::array<iovec, kRangesACall> remote;
  while (!cursor.done()) {
    uint64_t total = 0;
    const size_t count = cursor.gather(remote, total);
    const iovec local{out.data(), total};
    ssize_t got = ::process_vm_readv(pid_, &local, 1, remote.data(), count, 0);
    if (got < 0 && errno != EFAULT)
      return memory_error("process_vm_readv", pid_, cursor.at(), cursor.left(), errno);
    if (got <= 0) {
      // Not readable by its own protection (PROT_NONE), or not mapped: /proc/PID/mem knows the difference.
      const uint64_t size = std::min(cursor.left(), kStepThroughMem);
      got = ::pread(mem_.get(), out.data(), size, static_cast<off_t>(cursor.at()));
      if (got == 0) return memory_error("read memory", pid_, cursor.at(), cursor.left(), ESRCH);
      if (got < 0)
        return memory_error("read memory", pid_, cursor.at(), cursor.left(), errno == EIO ? EFAULT : errno);
    }
    out = out.subspan(static_cast<size_t>(got));
    cursor.advance(static_cast<uint64_t>(got));
  }
  return {};
}

Status Memory::write(RemoteAddr to, std::span<const std::byte> bytes) const {
  uint64_t at = to.value();
  while (!bytes.empty()) {
    const size_t size = std::min<size_t>(bytes.size(), kBytesACall);
    const iovec local{const_cast<std::byte*>(bytes.data()), size};
    const iovec remote{reinterpret_cast<void*>(at), size};
    ssize_t put = ::process_vm_writev(pid_, &local, 1, &remote, 1, 0);
    if (put < 0 && errno != EFAULT) return memory_error("process_vm_writev", pid_, at, bytes.size(), errno);
    if (put <= 0) {
      put =
          ::pwrite(mem_.get(), bytes.data(), std::min<size_t>(size, kStepThroughMem), static_cast<off_t>(at));
      if (put == 0) return memory_error("write memory", pid_, at, bytes.size(), ESRCH);
      if (put < 0) return memory_error("write memory", pid_, at, bytes.size(), errno == EIO ? EFAULT : errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(put));
    at += static_cast<uint64_t>(put);
  }
  return {};
}

Result<std::string> Memory::read_string(RemoteAddr from, size_t limit) const {
  std::string text;
  while (text.size() < limit) {
    // Never beyond the page: the next one may not be mapped.
    const uint64_t at = from.value() + text.size();
    const size_t old = text.size();
    text.resize(old + std::min<size_t>(limit - old, page_floor(at) + kPageSize - at));
    TRY(read(RemoteAddr(at), std::as_writable_bytes(std::span(text).subspan(old))));
    if (const size_t end = text.find('\0', old); end != std::string::npos) return text.substr(0, end);
  }
  return fail(ErrorKind::kCorrupt, "read a string", fmt::format("{} of pid {}", from, pid_),
              fmt::format("no end within {} bytes", limit));
}

}  // namespace godwit::tracee
