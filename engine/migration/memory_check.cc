#include "engine/migration/memory_check.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/base/units.h"
#include "engine/base/xxh3.h"
#include "engine/codec/zero_page.h"
#include "engine/tracee/registers.h"
#include "engine/wire/layout_messages.h"
#include "uffd/page_scan.h"

namespace godwit::migration {
namespace {

constexpr size_t kPages = 1_MiB / kPageSize;  ///< read, and told, at once

using Page = std::span<const std::byte, kPageSize>;

/// Each page of `bytes`, with its index.
template <typename Each>
void for_pages(std::span<const std::byte> bytes, const Each& each) {
  for (size_t i = 0; i < bytes.size() / kPageSize; ++i)
    each(i, Page(bytes.data() + i * kPageSize, kPageSize));
}

uint64_t hash_of(Page page) {
  return XXH3_64bits(page.data(), page.size());
}

/// Where the kernel keeps something of its own there is nothing to compare.
bool is_compared(const Vma& vma) {
  return vma.kind == VmaKind::kAnonymous || vma.kind == VmaKind::kFilePrivate ||
         vma.kind == VmaKind::kFileShared || vma.kind == VmaKind::kShmem;
}

void blank(AddressRange read, std::span<std::byte> bytes, AddressRange left_out) {
  const AddressRange part = intersect(read, left_out);
  if (part.empty()) return;
  const std::span<std::byte> blanked = bytes.subspan(part.start - read.start, part.size());
  std::fill(blanked.begin(), blanked.end(), std::byte{0});
}

/// `bytes`: room to read to.
Status send_run(const tracee::Memory& memory, AddressRange range, const std::vector<AddressRange>& left_out,
                std::span<std::byte> bytes, wire::RecordWriter& writer) {
  for (RemoteAddr at = range.start; at < range.end; at = at + bytes.size()) {
    const AddressRange part{at, std::min(at + bytes.size(), range.end)};
    const std::span<std::byte> read = bytes.first(part.size());
    TRY(memory.read_ranges({&part, 1}, read));
    wire::PageHashes message;
    message.set_start(at.value());
    for (const AddressRange& piece : left_out) {
      if (!piece.overlaps(part)) continue;
      blank(part, read, piece);
      *message.add_left_out() = wire::to_message(piece);
    }
    for_pages(read, [&](size_t, Page page) { message.add_hashes(hash_of(page)); });
    TRY(writer.write_message(wire::RecordType::kPageHashes, message));
  }
  return {};
}

/// The pages that differ, as far as an error names them.
class Difference {
 public:
  void add(RemoteAddr page, const char* how) {
    if (++count_ <= kNamed) named_ += fmt::format("{}{} {}", named_.empty() ? "" : ", ", page, how);
  }
  [[nodiscard]] Status status() const {
    if (count_ == 0) return {};
    Error error = fail(ErrorKind::kCorrupt, "verify memory",
                       fmt::format("{} page{}: {}{}", count_, count_ == 1 ? "" : "s", named_,
                                   count_ > kNamed ? ", ..." : ""),
                       "what was built here is not what was frozen");
    error.remedy = "please report this, with what GODWIT_LOG=debug tells on both sides";
    return error;
  }

 private:
  static constexpr uint64_t kNamed = 8;
  uint64_t count_ = 0;
  std::string named_;
};

Status compare_contents(const wire::PageHashes& expected, const uffd::PageInstaller& installer,
                        Difference& difference) {
  std::vector<RemoteAddr> pages;
  pages.reserve(static_cast<size_t>(expected.hashes_size()));
  for (int i = 0; i < expected.hashes_size(); ++i)
    pages.emplace_back(expected.start() + static_cast<uint64_t>(i) * kPageSize);
  std::vector<std::byte> bytes(pages.size() * kPageSize);
  TRY(installer.read_pages(pages, bytes));
  const AddressRange all{RemoteAddr(expected.start()), RemoteAddr(expected.start()) + bytes.size()};
  for (const wire::RangeMessage& piece : expected.left_out())
    blank(all, bytes, range_of(piece.start(), piece.end()));
  for_pages(bytes, [&](size_t i, Page page) {
    if (hash_of(page) != expected.hashes(static_cast<int>(i))) difference.add(pages[i], "differs");
  });
  return {};
}

/// What only this side has must be empty: a huge page brings more than was asked for.
Status compare_surplus(const std::vector<AddressRange>& surplus, const uffd::PageInstaller& installer,
                       Difference& difference) {
  for (const AddressRange& range : surplus) {
    for (RemoteAddr at = range.start; at < range.end; at = at + kPageSize) {
      std::array<std::byte, kPageSize> page;
      TRY(installer.read_pages({&at, 1}, page));
      if (!codec::is_zero_page(page)) difference.add(at, "should be empty");
    }
  }
  return {};
}

}  // namespace

std::vector<AddressRange> left_out_of_hashes(const tracee::Frozen& frozen) {
  std::vector<AddressRange> areas;
  for (const tracee::FrozenThread& thread : frozen.threads()) {
    const auto rseq = tracee::read_rseq(thread.tid);
    if (!rseq.ok() || rseq.value().address == 0) continue;
    areas.push_back(range_of(rseq.value().address, rseq.value().address + rseq.value().size));
  }
  return areas;
}

Result<uint64_t> send_hashes(const tracee::Memory& memory, DirtyTracker& tracker, const Layout& layout,
                             const std::vector<AddressRange>& left_out, wire::RecordWriter& writer) {
  uint64_t pages = 0;
  std::vector<std::byte> bytes(kPages * kPageSize);  // one for all runs: the process stands still meanwhile
  for (const Vma& vma : layout) {
    if (!is_compared(vma)) continue;
    for (const PageRun& run : TRY(tracker.survey(vma.range))) {
      if (!run.present) continue;
      TRY(send_run(memory, run.range, left_out, bytes, writer));
      pages += run.range.pages();
    }
  }
  return pages;
}

Status MemoryCheck::expect(wire::PageHashes hashes, const Layout& layout) {
  const auto pages = static_cast<uint64_t>(hashes.hashes_size());
  const auto wrong = [&](const char* why) {
    return fail(ErrorKind::kCorrupt, "read the hashes of pages",
                fmt::format("{} pages at {:#x}", pages, hashes.start()), why);
  };
  if (pages == 0 || pages > kPages || hashes.start() % kPageSize != 0) return wrong("their number or place");
  if (hashes.left_out_size() > static_cast<int>(kPages)) return wrong("too much is left out of them");
  const RemoteAddr start(hashes.start());
  const Vma* vma = find_vma(layout, start);
  if (vma == nullptr || pages * kPageSize > vma->range.end - start)
    return wrong("they lie outside the mappings that were described");
  if (!expected_.empty()) {
    const wire::PageHashes& last = expected_.back();
    if (hashes.start() < last.start() + static_cast<uint64_t>(last.hashes_size()) * kPageSize)
      return wrong("they do not ascend");
  }
  for (const wire::RangeMessage& piece : hashes.left_out()) {
    if (piece.start() > piece.end()) return wrong("what is left out of them ends before it begins");
  }
  expected_.push_back(std::move(hashes));
  return {};
}

Status MemoryCheck::compare(pid_t pid, const Layout& layout, const uffd::PageInstaller& installer) const {
  if (expected_.empty()) return {};
  Difference difference;
  PageSet told;
  for (const wire::PageHashes& expected : expected_) {
    TRY(compare_contents(expected, installer, difference));
    const RemoteAddr start(expected.start());
    told.insert({start, start + static_cast<uint64_t>(expected.hashes_size()) * kPageSize});
  }
  auto scanner = TRY(uffd::PageScanner::create(pid, 1));
  for (const Vma& vma : layout) {
    // Own pages of a private mapping: not those that show its file.
    if (vma.kind != VmaKind::kAnonymous && vma.kind != VmaKind::kFilePrivate) continue;
    constexpr uint64_t kOwn = uapi::kPageIsPresent | uapi::kPageIsFile;
    const uffd::ScanQuery own{.all = kOwn, .report = kOwn, .inverted = uapi::kPageIsFile};
    uffd::PageRegions found;
    TRY(scanner.scan(vma.range, own, found));
    PageSet surplus;
    for (const uapi::PageRegion& region : found) surplus.insert(range_of(region.start, region.end));
    for (const AddressRange& known : told.runs_in(vma.range)) surplus.erase(known);
    TRY(compare_surplus(surplus.runs(), installer, difference));
  }
  return difference.status();
}

}  // namespace godwit::migration
