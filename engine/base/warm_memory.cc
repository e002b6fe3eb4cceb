#include "engine/base/warm_memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "engine/base/files.h"
#include "engine/base/units.h"

namespace godwit {
namespace {

constexpr size_t kHeap = 16_MiB;  ///< what a freeze may allocate: state messages, the last pages' run lists
constexpr size_t kStack = 256_KiB;

/// Reserve for all threads in one arena, kept when it is freed.
void warm_heap() {
  ::mallopt(M_ARENA_MAX, 1);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  ::mallopt(M_TOP_PAD, static_cast<int>(kHeap));
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc takes
  void* block = std::malloc(kHeap);
  if (block == nullptr) return;
  std::memset(block, 1, kHeap);
  // The compiler may drop a block that nobody reads.
  asm volatile("" : : "r"(block) : "memory");
  std::free(block);
}

void warm_stack() {
  char deep[kStack];
  std::memset(deep, 0, sizeof deep);
  asm volatile("" : : "r"(deep) : "memory");
}

/// What the program and its libraries map.
void warm_files() {
  constexpr int kPopulateRead = 22, kPopulateWrite = 23;  // asm-generic/mman-common.h, since Linux 5.14
  const auto maps = read_file("/proc/self/maps");
  if (!maps.ok()) return;
  for (const std::string_view line : split(maps.value(), '\n')) {
    const size_t dash = line.find('-'), blank = line.find(' ');
    if (line.find(" /") == std::string_view::npos || dash == std::string_view::npos) continue;
    const auto start = parse_number(line.substr(0, dash), 16);
    const auto end = parse_number(line.substr(dash + 1, blank - dash - 1), 16);
    if (!start || !end) continue;
    const bool writable = line.substr(blank + 1, 2) == "rw";
    ::madvise(reinterpret_cast<void*>(*start), *end - *start, writable ? kPopulateWrite : kPopulateRead);
  }
}

}  // namespace

void warm_memory() {
  warm_heap();
  warm_stack();
  warm_files();
}

}  // namespace godwit
