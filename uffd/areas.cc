#include "uffd/areas.h"

#include <algorithm>

#include "engine/base/files.h"

namespace godwit::uffd {
namespace {

Status register_one(const Uffd& uffd, AddressRange range, std::vector<AddressRange>& untrackable) {
  Status status = uffd.register_range(range, UFFDIO_REGISTER_MODE_WP);
  if (status.ok()) return status;
  // KERNEL: on a dead mm registering answers ENOMEM, so ask first whether it lives.
  TRY(uffd.check_alive());
  if (status.error().kind != ErrorKind::kUnsupported) return status;
  untrackable.push_back(range);
  return {};
}

Status register_stretch(const Uffd& uffd, std::span<const AddressRange> ranges,
                        std::vector<AddressRange>& untrackable) {
  if (ranges.size() > 1) {
    const AddressRange all{ranges.front().start, ranges.back().end};
    if (uffd.register_range(all, UFFDIO_REGISTER_MODE_WP).ok()) return {};
  }
  for (const AddressRange range : ranges) TRY(register_one(uffd, range, untrackable));
  return {};
}

}  // namespace

Result<std::vector<Area>> read_areas(pid_t pid) {
  const std::string maps = TRY(read_file(fmt::format("/proc/{}/maps", pid)));
  std::vector<Area> areas;
  for (const std::string_view line : split(maps, '\n')) {
    const std::vector<std::string_view> words = split(line, ' ');  // range perms offset device inode [path]
    if (words.size() < 5 || words[1].size() != 4) continue;
    const std::vector<std::string_view> ends = split(words[0], '-');
    const auto start = parse_number(ends.front(), 16);
    const auto end = parse_number(ends.back(), 16);
    if (!start || !end || *end > kUserSpaceEnd) continue;  // vsyscall lies above
    areas.push_back({range_of(*start, *end), words[1][3] != 'p', words[4] != "0"});
  }
  return areas;
}

Result<std::vector<AddressRange>> register_areas(const Uffd& uffd, const std::vector<AddressRange>& ranges) {
  std::vector<AddressRange> sorted, untrackable;
  std::copy_if(ranges.begin(), ranges.end(), std::back_inserter(sorted),
               [](AddressRange r) { return !r.empty(); });
  std::sort(sorted.begin(), sorted.end(), [](AddressRange a, AddressRange b) { return a.start < b.start; });
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i + 1;
    while (end < sorted.size() && sorted[end].start == sorted[end - 1].end) end++;
    TRY(register_stretch(uffd, std::span(sorted).subspan(i, end - i), untrackable));
    i = end;
  }
  return untrackable;
}

void unregister_areas(const Uffd& uffd, pid_t pid) {
  const Result<std::vector<Area>> areas = read_areas(pid);
  if (!areas.ok()) return;
  for (const Area& area : areas.value()) (void)uffd.unregister_range(area.range);
}

}  // namespace godwit::uffd
