#include "engine/tracee/gadgets.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <tuple>

namespace godwit::tracee {
namespace {

using namespace std::literals;

constexpr std::string_view kSyscall = "\x0f\x05"sv;
constexpr std::string_view kSyscallRet = "\x0f\x05\xc3"sv;
constexpr std::string_view kRestorer = "\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"sv;  // glibc, musl, Go
constexpr std::string_view kShortRestorer = "\xb8\x0f\x00\x00\x00\x0f\x05"sv;
constexpr uint64_t kLargestSearch = 128_MiB;  // of code, in all files together

constexpr uint64_t kNowhere = ~0ULL;
struct Offsets {  // into a mapping
  uint64_t syscall = kNowhere, syscall_ret = kNowhere, restorer = kNowhere;
};

using FileKey = std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>;  // device, inode, offset, size
struct Cache {
  std::mutex mutex;
  std::map<FileKey, Offsets> known;
};
Cache& cache() {
  static Cache instance;
  return instance;
}

uint64_t find_bytes(std::string_view code, std::string_view wanted) {
  const size_t at = code.find(wanted);
  return at == std::string_view::npos ? kNowhere : at;
}

Result<Offsets> search(const Memory& memory, const Vma& vma) {
  std::string code(vma.range.size(), '\0');
  TRY(memory.read(vma.range.start, std::as_writable_bytes(std::span(code))));
  const uint64_t restorer = std::min(find_bytes(code, kRestorer), find_bytes(code, kShortRestorer));
  return Offsets{find_bytes(code, kSyscall), find_bytes(code, kSyscallRet), restorer};
}

bool is_there(const Memory& memory, RemoteAddr at, std::string_view wanted) {
  std::string code(wanted.size(), '\0');
  return memory.read(at, std::as_writable_bytes(std::span(code))).ok() && code == wanted;
}

/// What the cache says of this file, unless a look at the process itself disagrees.
std::optional<Offsets> recall(const Memory& memory, const Vma& vma, const FileKey& key) {
  const std::lock_guard lock(cache().mutex);
  const auto found = cache().known.find(key);
  if (found == cache().known.end()) return std::nullopt;
  const Offsets& offsets = found->second;
  const RemoteAddr base = vma.range.start;
  if (offsets.syscall_ret != kNowhere && !is_there(memory, base + offsets.syscall_ret, kSyscallRet))
    return std::nullopt;
  if (offsets.restorer != kNowhere && !is_there(memory, base + offsets.restorer, kRestorer) &&
      !is_there(memory, base + offsets.restorer, kShortRestorer))
    return std::nullopt;
  return offsets;
}

Result<Offsets> look_up(const Memory& memory, const Vma& vma) {
  if (vma.inode == 0) return search(memory, vma);
  const FileKey key(vma.device, vma.inode, vma.offset, vma.range.size());
  if (const auto known = recall(memory, vma, key)) return *known;
  const Offsets offsets = TRY(search(memory, vma));
  const std::lock_guard lock(cache().mutex);
  cache().known[key] = offsets;
  return offsets;
}

/// Code that is searched, the most promising first.
std::vector<const Vma*> candidates(const Layout& layout) {
  std::vector<const Vma*> all;
  for (const Vma& vma : layout) {
    const bool file = vma.kind == VmaKind::kFilePrivate && vma.inode != 0;
    if ((vma.prot & PROT_EXEC) != 0 && (vma.prot & PROT_READ) != 0 && (file || vma.path == "[vdso]"))
      all.push_back(&vma);
  }
  const auto is_libc = [](const Vma* vma) {
    return vma->path.find("/libc.so") != std::string::npos || vma->path.find("/libc-") != std::string::npos ||
           vma->path.find("/ld-musl") != std::string::npos;
  };
  std::stable_sort(all.begin(), all.end(), [&](const Vma* a, const Vma* b) {
    return is_libc(a) != is_libc(b) ? is_libc(a) : a->range.size() < b->range.size();
  });
  return all;
}

}  // namespace

Result<Gadgets> find_gadgets(const Memory& memory, const Layout& layout) {
  Gadgets gadgets;
  uint64_t searched = 0;
  const auto take = [](RemoteAddr& into, RemoteAddr base, uint64_t offset) {
    if (into == RemoteAddr() && offset != kNowhere) into = base + offset;
  };
  for (const Vma* vma : candidates(layout)) {
    searched += vma->range.size();
    if (gadgets.complete() || searched > kLargestSearch) break;
    const Offsets offsets = TRY(look_up(memory, *vma));
    take(gadgets.syscall, vma->range.start, offsets.syscall);
    take(gadgets.syscall_ret, vma->range.start, offsets.syscall_ret);
    take(gadgets.restorer, vma->range.start, offsets.restorer);
  }
  return gadgets;
}

}  // namespace godwit::tracee
