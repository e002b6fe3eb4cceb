// One virtual memory area of a process, as /proc/PID/maps and smaps tell of it, and the layout they form.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/address_range.h"

namespace godwit {

/// What stands behind a mapping; it decides who carries its contents (docs/process-support.md).
enum class VmaKind : uint8_t {
  kInvalid = 0,
  kAnonymous,    ///< private anonymous, heap and stack included: tracked pages
  kFilePrivate,  ///< MAP_PRIVATE of a file: the file on the destination plus tracked, modified pages
  kFileShared,   ///< MAP_SHARED of a named file: the file on the destination plus tracked pages
  kShmem,        ///< shared anonymous memory or a memfd: the object is carried, its mappings only point to it
  kVdso,         ///< vdso, vvar, vvar_vclock: the kernel's own, rebuilt by ARCH_MAP_VDSO_64
  kVsyscall,     ///< fixed, the same everywhere
  kUnsupported,  ///< device memory, files of hugetlbfs, SysV shm, ...: check() names it
};

struct Vma {
  AddressRange range;
  int prot = 0;         ///< PROT_READ | PROT_WRITE | PROT_EXEC
  bool shared = false;  ///< MAP_SHARED
  VmaKind kind = VmaKind::kInvalid;
  uint64_t offset = 0;  ///< bytes into the file or object
  uint64_t device = 0;  ///< st_dev of the file as maps prints it (major << 32 | minor), 0 if none
  uint64_t inode = 0;
  std::string path;   ///< as maps prints it: a path, "[heap]", "[stack]", "/memfd:x (deleted)", or empty
  std::string flags;  ///< VmFlags of smaps ("rd wr mr mw me ac sd"), empty when only maps was read
  int protection_key = 0;
  uint64_t huge_page = 0;  ///< bytes of a page of hugetlbfs, 0: ordinary memory; from smaps alone

  [[nodiscard]] bool has_flag(std::string_view two_letters) const {
    return flags.find(two_letters) != std::string::npos;
  }
  bool operator==(const Vma&) const = default;
};

/// The one size of hugetlbfs pages that is carried.
constexpr uint64_t kHugePageSize = 2_MiB;

/// Sorted by address, without overlaps.
using Layout = std::vector<Vma>;

/// As maps shows it, without the file's numbers: "7f0000000000-7f0000001000 rw-p /lib/x.so".
std::string to_text(const Vma& vma);

/// The area that holds `a`, or nullptr. The pointer lives as long as `layout` is unchanged.
const Vma* find_vma(const Layout& layout, RemoteAddr a);

}  // namespace godwit
