#include "engine/migration/object_scan.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>

#include "engine/base/xxh3.h"
#include "engine/codec/zero_page.h"

namespace godwit::migration {
namespace {

constexpr unsigned kMostThreads = 4;
constexpr uint64_t kUnit = 4_MiB;   // what a thread takes at once
constexpr size_t kChunk = 256_KiB;  // read at once: it stays in the cache

/// One thread's share of a scan.
struct Part {
  const ReadableObject& file;
  std::span<const uint64_t> sent;
  std::vector<std::byte>& buffer;
  ObjectScan::Found found;

  Status look_at_hole(uint64_t begin, uint64_t end) {
    for (uint64_t page = begin >> kPageShift; page < end >> kPageShift; ++page)
      if (sent[page] != kZeros) found.pages.push_back(page);
    return {};
  }
  Status look_at_data(uint64_t begin, uint64_t end) {
    for (uint64_t at = begin; at < end; at += kChunk) {
      const std::span chunk(buffer.data(), std::min<uint64_t>(kChunk, end - at));
      TRY(read_object(file, at, chunk));
      found.bytes += chunk.size();
      for (size_t i = 0; i < chunk.size(); i += kPageSize) {
        const uint64_t page = (at + i) >> kPageShift;
        if (hash_page(chunk.subspan(i).first<kPageSize>()) != sent[page]) found.pages.push_back(page);
      }
    }
    return {};
  }
  Status look_at(uint64_t begin, uint64_t end) {
    return visit_extents(
        file, begin, end, [this](uint64_t b, uint64_t e) { return look_at_hole(b, e); },
        [this](uint64_t b, uint64_t e) { return look_at_data(b, e); });
  }
};

}  // namespace

uint64_t hash_page(std::span<const std::byte, kPageSize> page) {
  if (codec::is_zero_page(page)) return kZeros;
  return std::max<uint64_t>(1, XXH3_64bits(page.data(), page.size()));
}

Status visit_extents(const ReadableObject& file, uint64_t begin, uint64_t end, const OnExtent& hole,
                     const OnExtent& data) {
  for (uint64_t at = begin; at < end;) {
    const off_t found = ::lseek(file.fd, static_cast<off_t>(at), SEEK_DATA);
    // ENXIO: nothing but a hole, or it ends before; for the pages that is the same.
    if (found < 0 && errno != ENXIO)
      return fail_errno("search a shared memory object for data", file.subject);
    const uint64_t first = found < 0 ? end : std::clamp(page_floor(static_cast<uint64_t>(found)), at, end);
    if (at < first) TRY(hole(at, first));
    if (first == end) break;
    const off_t over = ::lseek(file.fd, static_cast<off_t>(first), SEEK_HOLE);
    // If the data is gone since, what is told as data reads as zeros.
    at = over <= static_cast<off_t>(first) ? end : std::min(page_ceil(static_cast<uint64_t>(over)), end);
    TRY(data(first, at));
  }
  return {};
}

Status read_object(const ReadableObject& file, uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::pread(file.fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("read a shared memory object", file.subject);
    if (n == 0) break;  // the last page may be partial, or the object shrank
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  std::fill(out.begin(), out.end(), std::byte{0});
  return {};
}

ObjectScan::ObjectScan()
    : pool_(std::make_unique<HelperPool>(std::clamp(processors(), 1U, kMostThreads) - 1)),
      buffers_(pool_->size(), std::vector<std::byte>(kChunk)) {}

Result<ObjectScan::Found> ObjectScan::find_differing(const ReadableObject& file,
                                                     std::span<const uint64_t> sent) {
  const uint64_t size = sent.size() << kPageShift;
  std::atomic<uint64_t> next{0};
  std::mutex lock;
  Found all;
  std::optional<Error> error;
  const std::function<void(unsigned)> work = [&](unsigned index) {
    Part part{file, sent, buffers_[index], {}};
    Status done;
    for (uint64_t at = next.fetch_add(kUnit); at < size && done.ok(); at = next.fetch_add(kUnit))
      done = part.look_at(at, std::min(at + kUnit, size));
    const std::lock_guard alone(lock);
    if (!done.ok()) error = done.take_error();
    all.bytes += part.found.bytes;
    all.pages.insert(all.pages.end(), part.found.pages.begin(), part.found.pages.end());
  };
  if (size > kUnit)
    pool_->run(work);
  else
    work(0);
  if (error) return std::move(*error);
  std::sort(all.pages.begin(), all.pages.end());
  return all;
}

}  // namespace godwit::migration
