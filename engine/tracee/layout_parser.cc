// The text of maps and smaps taken apart: by hand and in one pass, for it runs inside the freeze.
//
//   7f14905-7f14906 r--p 00027000 fe:00 332383                     /usr/lib/x   <- an area begins with a hex
//   digit Size:                 24 kB                                                  <- an attribute with a
//   capital
#include <fmt/format.h>
#include <sys/mman.h>

#include "engine/base/files.h"
#include "engine/tracee/process.h"

namespace godwit::tracee {
namespace {

Error corrupt(std::string_view line, const char* why) {
  return fail(ErrorKind::kCorrupt, "parse the memory map", fmt::format("line \"{}\"", line.substr(0, 200)),
              why);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

/// Takes a number off the front of `rest`, and the one `separator` behind it. False if there is none.
bool take_hex(std::string_view& rest, char separator, uint64_t& value) {
  size_t used = 0;
  value = 0;
  for (int digit; used < rest.size() && (digit = hex_digit(rest[used])) >= 0; ++used)
    value = value << 4 | static_cast<uint64_t>(digit);
  if (used == 0 || used > 16 || used >= rest.size() || rest[used] != separator) return false;
  rest.remove_prefix(used + 1);
  return true;
}

/// Takes the decimal inode; what follows (blanks and a path) may be missing.
bool take_inode(std::string_view& rest, uint64_t& value) {
  size_t used = 0;
  value = 0;
  for (; used < rest.size() && rest[used] >= '0' && rest[used] <= '9'; ++used)
    value = value * 10 + static_cast<uint64_t>(rest[used] - '0');
  if (used == 0 || used > 20 || (used < rest.size() && rest[used] != ' ')) return false;
  rest.remove_prefix(used);
  return true;
}

bool take_permissions(std::string_view& rest, Vma& vma) {
  constexpr std::string_view kFull = "rwx";
  constexpr int kBits[] = {PROT_READ, PROT_WRITE, PROT_EXEC};
  if (rest.size() < 5 || rest[4] != ' ' || (rest[3] != 'p' && rest[3] != 's')) return false;
  for (size_t i = 0; i < 3; ++i) {
    if (rest[i] == kFull[i])
      vma.prot |= kBits[i];
    else if (rest[i] != '-')
      return false;
  }
  vma.shared = rest[3] == 's';
  rest.remove_prefix(5);
  return true;
}

constexpr uint64_t kKernelShmemMount =
    1;  // KERNEL: device 0:1, the internal mount behind memfd and MAP_SHARED|ANON

/// KERNEL: what MAP_ANONYMOUS | MAP_HUGETLB shows, private or shared: a file of its own for each mmap.
constexpr std::string_view kAnonymousHuge = "/anon_hugepage (deleted)";

VmaKind kind_of_special(const Vma& vma) {
  const std::string_view path = vma.path;
  if (path.starts_with("[vdso]") || path.starts_with("[vvar")) return VmaKind::kVdso;
  if (path == "[vsyscall]") return VmaKind::kVsyscall;
  if (path == "[heap]" || path.starts_with("[stack") || path.starts_with("[anon:"))
    return VmaKind::kAnonymous;
  if (path.starts_with("[anon_shmem:")) return VmaKind::kShmem;
  return VmaKind::kUnsupported;  // [uprobes], [xol], ...
}

VmaKind kind_of_shmem(const Vma& vma) {
  return vma.shared ? VmaKind::kShmem : VmaKind::kFilePrivate;
}

VmaKind kind_of_deleted(const Vma& vma) {
  const std::string_view path = vma.path;
  if (path.starts_with("/SYSV") || path.starts_with("/secretmem")) return VmaKind::kUnsupported;
  if (path == kAnonymousHuge) return vma.shared ? VmaKind::kShmem : VmaKind::kAnonymous;
  if (path.starts_with("/memfd:") || path.starts_with("/dev/zero") || path.starts_with("/dev/shm/") ||
      vma.device == kKernelShmemMount)
    return kind_of_shmem(vma);
  return vma.shared ? VmaKind::kFileShared : VmaKind::kFilePrivate;
}

VmaKind kind_of(const Vma& vma) {
  const std::string_view path = vma.path;
  if (path.empty()) return vma.shared ? VmaKind::kUnsupported : VmaKind::kAnonymous;
  if (path.front() == '[') return kind_of_special(vma);
  if (path.front() != '/') return VmaKind::kUnsupported;  // anon_inode:[io_uring], socket:[1], ...
  if (path.ends_with(" (deleted)")) return kind_of_deleted(vma);
  if (path == "/dev/zero") return vma.shared ? VmaKind::kShmem : VmaKind::kAnonymous;
  if (path.starts_with("/dev/") && !path.starts_with("/dev/shm/")) return VmaKind::kUnsupported;
  return vma.shared ? VmaKind::kFileShared : VmaKind::kFilePrivate;
}

Result<Vma> parse_area(std::string_view line) {
  Vma vma;
  std::string_view rest = line;
  uint64_t start = 0, end = 0, major = 0, minor = 0;
  if (!take_hex(rest, '-', start) || !take_hex(rest, ' ', end)) return corrupt(line, "no address range");
  if (start >= end || ((start | end) & (kPageSize - 1)) != 0) return corrupt(line, "not a range of pages");
  if (!take_permissions(rest, vma)) return corrupt(line, "no permissions");
  if (!take_hex(rest, ' ', vma.offset)) return corrupt(line, "no offset");
  if (!take_hex(rest, ':', major) || !take_hex(rest, ' ', minor)) return corrupt(line, "no device");
  if (!take_inode(rest, vma.inode)) return corrupt(line, "no inode");
  const size_t path = rest.find_first_not_of(' ');
  if (path != std::string_view::npos) vma.path = rest.substr(path);
  vma.range = range_of(start, end);
  vma.device = major << 32 | (minor & 0xffffffff);
  vma.kind = kind_of(vma);
  return vma;
}

/// Of hugetlbfs, memory without a name that others could open it by.
bool is_movable_huge(const Vma& vma) {
  const bool nameless = vma.path == kAnonymousHuge || vma.path.starts_with("/memfd:");
  return nameless && vma.huge_page == kHugePageSize;
}

/// "     2048 kB", in bytes.
Result<uint64_t> parse_kib(std::string_view line, std::string_view text) {
  text = trim(text);
  const auto number = parse_number(text.substr(0, text.find(' ')));
  if (!number || *number > kUserSpaceEnd >> 10) return corrupt(line, "no size");
  return *number << 10;
}

/// One "Key: value" line of smaps.
Status parse_attribute(std::string_view line, Vma& vma) {
  if (line.starts_with("VmFlags:")) {
    vma.flags = trim(line.substr(8));
    const bool device = vma.has_flag("io") || vma.has_flag("pf");
    const bool strange = device || (vma.has_flag("ht") && !is_movable_huge(vma));
    if (vma.kind != VmaKind::kVdso && strange) vma.kind = VmaKind::kUnsupported;
  } else if (line.starts_with("KernelPageSize:")) {
    const uint64_t size = TRY(parse_kib(line, line.substr(15)));
    if (size > kPageSize) vma.huge_page = size;
  } else if (line.starts_with("ProtectionKey:")) {
    const auto key = parse_number(trim(line.substr(14)));
    if (!key || *key > 15) return corrupt(line, "no protection key");
    vma.protection_key = static_cast<int>(*key);
  }
  return {};
}

}  // namespace

Result<Layout> parse_layout(std::string_view text) {
  Layout layout;
  layout.reserve(text.size() / 90 + 1);
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty()) return corrupt(line, "an empty line");
    if (hex_digit(line.front()) >= 0) {
      Vma vma = TRY(parse_area(line));
      if (!layout.empty() && vma.range.start < layout.back().range.end) return corrupt(line, "areas overlap");
      layout.push_back(std::move(vma));
    } else if (line.front() >= 'A' && line.front() <= 'Z' && !layout.empty()) {
      TRY(parse_attribute(line, layout.back()));
    } else {
      return corrupt(line, "neither an area nor an attribute of one");
    }
  }
  return layout;
}

}  // namespace godwit::tracee
