#include "engine/migration/huge_pages.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "engine/base/files.h"
#include "engine/state/memory_objects.h"
#include "uffd/page_scan.h"

namespace godwit::migration {
namespace {

constexpr std::string_view kPool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
constexpr uint64_t kBlock = 512;  ///< stat(2): the unit of st_blocks

uint64_t pool_value(std::string_view name) {
  const auto text = read_file(fmt::format("{}/{}", kPool, name));
  return text.ok() ? parse_number(trim(text.value())).value_or(0) : 0;
}

/// What the kernel may still hand out: free and not promised to anybody, or made on demand.
uint64_t pages_to_spare() {
  const uint64_t free = pool_value("free_hugepages"), reserved = pool_value("resv_hugepages");
  const uint64_t overcommit = pool_value("nr_overcommit_hugepages"),
                 surplus = pool_value("surplus_hugepages");
  return free - std::min(free, reserved) + overcommit - std::min(overcommit, surplus);
}

Result<uint64_t> count_own(uffd::PageScanner& scanner, AddressRange range) {
  uffd::PageRegions found;
  constexpr uint64_t kHeld = uapi::kPageIsPresent | uapi::kPageIsFile;
  TRY(scanner.scan(range, {.any = uapi::kPageIsPresent, .report = kHeld}, found));
  uint64_t bytes = 0;
  for (const uapi::PageRegion& region : found) {
    if ((region.categories & uapi::kPageIsFile) == 0) bytes += region.end - region.start;
  }
  return bytes / kHugePageSize;
}

}  // namespace

Result<uint64_t> count_huge_pages(const tracee::Process& process, const Layout& layout,
                                  const std::vector<state::OpenFile>& files) {
  uint64_t pages = 0;
  std::map<uint64_t, uint64_t> reserved;  // of each object, by its shared mappings
  std::optional<uffd::PageScanner> scanner;
  for (const Vma& vma : layout) {
    if (vma.huge_page != kHugePageSize) continue;
    if (vma.shared) {
      if (!vma.has_flag("nr"))
        reserved[state::object_key(vma.device, vma.inode)] += vma.range.size() / kHugePageSize;
    } else if (!vma.has_flag("nr")) {
      pages += vma.range.size() / kHugePageSize;
    } else {
      if (!scanner) scanner = TRY(uffd::PageScanner::create(process.pid(), 1));
      pages += TRY(count_own(*scanner, vma.range));
    }
  }
  for (const state::ObjectSource& object : TRY(state::find_objects(process, layout, files))) {
    struct stat status {};
    if (object.info.huge_page() != kHugePageSize || ::fstat(object.fd.get(), &status) != 0) continue;
    const uint64_t all = object.info.size() / kHugePageSize;
    const uint64_t there = static_cast<uint64_t>(status.st_blocks) * kBlock / kHugePageSize;
    pages += std::min(all, std::max(there, reserved[object.info.id()]));
  }
  return pages;
}

std::optional<state::Finding> judge_huge_pages(uint64_t wanted) {
  if (wanted == 0) return std::nullopt;
  const uint64_t spare = pages_to_spare();
  if (spare >= wanted) return std::nullopt;
  const uint64_t total = pool_value("nr_hugepages") + wanted - spare;
  return state::Finding{
      "address-space",
      "the destination host",
      fmt::format("it can spare {} huge pages of 2048 kB, and the process takes {}", spare, wanted),
      "memory of hugetlbfs is made of nothing else",
      fmt::format("reserve {} huge pages of 2048 kB: echo {} > {}/nr_hugepages", wanted, total, kPool),
      true};
}

}  // namespace godwit::migration
