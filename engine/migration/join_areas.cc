#include "engine/migration/join_areas.h"

#include <algorithm>
#include <vector>

#include "engine/base/log.h"
#include "engine/tracee/process.h"
#include "uffd/page_scan.h"

namespace godwit::migration {
namespace {

/// The areas of `now` (ascending) inside `range`.
std::vector<AddressRange> parts_of(AddressRange range, const Layout& now) {
  std::vector<AddressRange> parts;
  auto at = std::lower_bound(now.begin(), now.end(), range.start,
                             [](const Vma& vma, RemoteAddr start) { return vma.range.end <= start; });
  for (; at != now.end() && at->range.start < range.end; ++at) parts.push_back(intersect(at->range, range));
  return parts;
}

/// What a part of an area holds, kept while its place is mapped anew.
class SavedPages {
 public:
  static Result<SavedPages> save(pid_t pid, AddressRange range, const uffd::PageInstaller& installer) {
    SavedPages saved;
    uffd::PageScanner scanner = TRY(uffd::PageScanner::create(pid, 1));
    uffd::PageRegions present;
    constexpr uint64_t kHeld = uapi::kPageIsPresent | uapi::kPageIsSwapped;
    TRY(scanner.scan(range, {.any = kHeld, .report = kHeld}, present));
    std::vector<RemoteAddr> pages;
    for (const uapi::PageRegion& region : present) {
      saved.runs_.push_back(range_of(region.start, region.end));
      for (uint64_t at = region.start; at < region.end; at += kPageSize) pages.emplace_back(at);
    }
    saved.bytes_.resize(pages.size() * kPageSize);
    TRY(installer.read_pages(pages, saved.bytes_));
    return saved;
  }

  Status put_back(const uffd::PageInstaller& installer) const {
    auto rest = std::span(bytes_);
    for (const AddressRange& run : runs_) {
      TRY(installer.install_run(run, rest.first(run.size())));
      rest = rest.subspan(run.size());
    }
    return {};
  }

 private:
  std::vector<AddressRange> runs_;
  std::vector<std::byte> bytes_;
};

Status renew_all(pid_t pid, const std::vector<AddressRange>& parts, const uffd::PageInstaller& installer,
                 const std::function<Status(AddressRange)>& renew) {
  for (const AddressRange& part : parts) {
    const SavedPages saved = TRY(SavedPages::save(pid, part, installer));
    TRY(renew(part));
    TRY(saved.put_back(installer));
  }
  return {};
}

}  // namespace

Status join_areas(pid_t pid, const Layout& wanted, const uffd::PageInstaller& installer,
                  const std::function<Status(AddressRange)>& renew) {
  const auto process = TRY(tracee::Process::open(pid));
  Layout now = TRY(process.layout());
  for (const Vma& vma : wanted) {
    if (vma.kind != VmaKind::kAnonymous || vma.huge_page != 0) continue;
    std::vector<AddressRange> parts = parts_of(vma.range, now);
    if (parts.size() < 2) continue;
    log_debug("{} consists of {} areas here: joining them", vma.range, parts.size());
    parts.erase(std::max_element(parts.begin(), parts.end(),
                                 [](AddressRange a, AddressRange b) { return a.size() < b.size(); }));
    TRY(renew_all(pid, parts, installer, renew));
    now = TRY(process.layout());
    // A part may have merged with the area on its other side: mapped in one go, the whole is one.
    if (parts_of(vma.range, now).size() < 2) continue;
    TRY(renew_all(pid, {vma.range}, installer, renew));
    now = TRY(process.layout());
  }
  return {};
}

}  // namespace godwit::migration
