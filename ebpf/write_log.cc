#include "ebpf/write_log.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <map>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // what bpftool writes
#include "ebpf/write_log.skel.h"
#pragma GCC diagnostic pop
#include "ebpf/libbpf_reason.h"
#include "ebpf/load_program.h"
#include "ebpf/thread_iteration.h"
#include "ebpf/write_log_record.h"
#include "engine/base/mapping.h"
#include "engine/base/units.h"

namespace godwit::ebpf {
namespace {

constexpr std::array<const char*, GODWIT_TRIPS> kTrips{
    "its address space was reached into or changed (mmap, brk, process_vm_writev, a reader of its maps, ...)",
    "madvise was called", "it has more threads than the log knows"};

Error unsupported(const char* operation, pid_t pid, int err) {
  return ebpf::unsupported(operation, fmt::format("the faults of pid {}", pid), err,
                           "the freeze looks at all memory");
}

Program<write_log_bpf> load(pid_t pid) {
  return load_program<write_log_bpf>([pid](write_log_bpf& program) {
    const auto room = static_cast<__u32>(256 + 4 * count_threads(pid));
    ::bpf_map__set_max_entries(program.maps.last, room);
    ::bpf_map__set_max_entries(program.maps.serving, room);
  });
}

constexpr size_t kWorthSorting = 16384;  ///< addresses: half a millisecond

uint64_t load_shared(const __u64& value) {
  return __atomic_load_n(&value, __ATOMIC_ACQUIRE);
}

/// A fault may bring neighbours, or touch them, as far as a huge page reaches; those can be written without a
/// fault of their own. Hundreds of thousands of addresses may lie in a few hundred huge pages: a bit for each
/// of these costs a tenth of sorting them.
std::vector<AddressRange> huge_pages_around(const std::vector<uint64_t>& addresses) {
  constexpr uint64_t kHugeShift = 21;
  constexpr uint64_t kGroup = 512;
  std::map<uint64_t, std::bitset<kGroup>> groups;
  for (const uint64_t address : addresses) {
    const uint64_t number = address >> kHugeShift;
    groups[number / kGroup].set(number % kGroup);
  }
  std::vector<AddressRange> ranges;
  for (const auto& [group, bits] : groups) {
    for (uint64_t i = 0; i < kGroup; ++i) {
      const uint64_t number = group * kGroup + i;
      if (!bits[i]) continue;
      const AddressRange page = range_of(number << kHugeShift, (number + 1) << kHugeShift);
      if (!ranges.empty() && ranges.back().end == page.start)
        ranges.back().end = page.end;
      else
        ranges.push_back(page);
    }
  }
  return ranges;
}

std::vector<AddressRange> pages_of(std::vector<uint64_t> addresses) {
  std::sort(addresses.begin(), addresses.end());
  std::vector<AddressRange> ranges;
  for (const uint64_t address : addresses) {
    const uint64_t start = page_floor(address);
    if (!ranges.empty() && start <= ranges.back().end.value())
      ranges.back().end = std::max(ranges.back().end, RemoteAddr(start + kPageSize));
    else
      ranges.push_back(range_of(start, start + kPageSize));
  }
  return ranges;
}

}  // namespace

struct FaultLog::Loaded {
  pid_t pid = 0;
  Program<write_log_bpf> program{nullptr, nullptr};
  std::vector<Link> links;
  Mapping ring;
  bool watching = false;          ///< for what is no fault, too
  uint64_t told = 0;              ///< up to here by heard()
  uint64_t head = 0, misses = 0;  ///< at the mark
  std::array<uint64_t, GODWIT_TRIPS> trips{};
  std::vector<uint64_t> under_way;  ///< faults that were, or that had just ended

  Status learn();
  Status attach(bpf_program* which);
  Status watch();
  Result<uint64_t> count_misses() const;
  Result<std::string> why_blind() const;
  Status read_last(std::vector<uint64_t>& entries) const;
  [[nodiscard]] std::vector<uint64_t> entries_between(uint64_t from, uint64_t to) const;
};

/// The programs know address spaces by their mm_struct, which an iteration over the process tells them.
Status FaultLog::Loaded::learn() {
  const Link threads = attach_to_threads(program->progs.learn, pid);
  if (!threads) return unsupported("attach a BPF iterator", pid, errno);
  std::vector<std::byte> nothing;
  TRY(visit_threads(threads, pid, nothing));
  if (program->bss->watched != 0) return {};
  return fail(ErrorKind::kTargetGone, "watch the faults", fmt::format("pid {}", pid));
}

Status FaultLog::Loaded::attach(bpf_program* which) {
  links.emplace_back(::bpf_program__attach(which));
  if (links.back()) return {};
  const int err = errno;
  links.pop_back();
  return unsupported(::bpf_program__name(which), pid, err);
}

/// KERNEL: a program that is met while it runs on the same processor is skipped, and counted.
Result<uint64_t> FaultLog::Loaded::count_misses() const {
  uint64_t counted = 0;
  bpf_program* program_of = nullptr;
  bpf_object__for_each_program(program_of, program->obj) {
    bpf_prog_info info{};
    __u32 size = sizeof info;
    if (::bpf_obj_get_info_by_fd(::bpf_program__fd(program_of), &info, &size) != 0)
      return fail_errno("ask for BPF statistics", ::bpf_program__name(program_of));
    counted += info.recursion_misses;
  }
  return counted;
}

Result<std::string> FaultLog::Loaded::why_blind() const {
  for (size_t i = 0; i < kTrips.size(); ++i) {
    if (load_shared(program->bss->trips[i]) != trips[i]) return std::string(kTrips[i]);
  }
  if (load_shared(program->bss->head) - head > GODWIT_WRITE_LOG_ENTRIES)
    return fmt::format("it wrote to more than {} pages", GODWIT_WRITE_LOG_ENTRIES);
  if (TRY(count_misses()) != misses) return std::string("a fault was not heard");
  return std::string();
}

Status FaultLog::Loaded::read_last(std::vector<uint64_t>& entries) const {
  const __u32 room = ::bpf_map__max_entries(program->maps.last);
  std::vector<__u64> keys(room), values(room);
  __u64 position = 0;
  __u32 count = room;
  DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
  const int failed = ::bpf_map_lookup_batch(::bpf_map__fd(program->maps.last), nullptr, &position,
                                            keys.data(), values.data(), &count, &options);
  // KERNEL: ENOENT says that this was all of it.
  if (failed != 0 && errno != ENOENT)
    return fail_errno("read a BPF map", fmt::format("the threads of pid {}", pid));
  entries.insert(entries.end(), values.begin(), values.begin() + count);
  return {};
}

std::vector<uint64_t> FaultLog::Loaded::entries_between(uint64_t from, uint64_t to) const {
  const auto* entries = reinterpret_cast<const __u64*>(ring.data());
  std::vector<uint64_t> copied;
  copied.reserve(to - from);
  for (uint64_t at = from; at < to; ++at) copied.push_back(entries[at % GODWIT_WRITE_LOG_ENTRIES]);
  return copied;
}

FaultLog::FaultLog(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
FaultLog::~FaultLog() = default;

Result<std::unique_ptr<FaultLog>> FaultLog::create(pid_t pid) {
  hear_libbpf();
  auto loaded = std::make_unique<Loaded>();
  loaded->pid = pid;
  loaded->program = load(pid);
  if (!loaded->program) return unsupported("load a BPF program", pid, errno);
  loaded->ring = TRY(Mapping::create(GODWIT_WRITE_LOG_ENTRIES * sizeof(__u64), PROT_READ, MAP_SHARED,
                                     ::bpf_map__fd(loaded->program->maps.ring)));
  TRY(loaded->learn());
  TRY(loaded->attach(loaded->program->progs.user_fault));
  TRY(loaded->attach(loaded->program->progs.kernel_fault));
  return std::unique_ptr<FaultLog>(new FaultLog(std::move(loaded)));
}

Status FaultLog::Loaded::watch() {
  if (watching) return {};
  TRY(attach(program->progs.lock_begin));
  TRY(attach(program->progs.lock_end));
  TRY(attach(program->progs.call_end));
  watching = true;
  return {};
}

std::optional<std::vector<AddressRange>> FaultLog::heard(size_t most) {
  Loaded& all = *loaded_;
  const uint64_t head = load_shared(all.program->bss->head);
  const uint64_t from = std::exchange(all.told, head);
  if (head - from > std::min<size_t>(most, GODWIT_WRITE_LOG_ENTRIES)) return std::nullopt;
  return pages_of(all.entries_between(from, head));
}

Result<uint64_t> FaultLog::changes() {
  TRY(loaded_->watch());
  const auto& counts = loaded_->program->bss->trips;
  return load_shared(counts[GODWIT_TRIP_MMAP_LOCK]) + load_shared(counts[GODWIT_TRIP_MADVISE]);
}

Status FaultLog::mark() {
  Loaded& all = *loaded_;
  TRY(all.watch());
  all.misses = TRY(all.count_misses());
  for (size_t i = 0; i < all.trips.size(); ++i) all.trips[i] = load_shared(all.program->bss->trips[i]);
  // ORDER: the head, then the last faults: one that is under way now is in them, or behind the head.
  all.head = load_shared(all.program->bss->head);
  all.under_way.clear();
  return all.read_last(all.under_way);
}

Result<WrittenSince> FaultLog::since_mark() {
  const Loaded& all = *loaded_;
  WrittenSince written;
  if (!all.watching) written.blind = "it was not marked";
  if (written.blind.empty()) written.blind = TRY(all.why_blind());
  if (!written.blind.empty()) return written;
  std::vector<uint64_t> entries = all.entries_between(all.head, load_shared(all.program->bss->head));
  // A fault that was heard before the mark may have been served after it, behind the collect. It was the last
  // of its thread then, and need not be any more.
  entries.insert(entries.end(), all.under_way.begin(), all.under_way.end());
  written.around = huge_pages_around(entries);
  if (entries.size() <= kWorthSorting) written.pages = pages_of(std::move(entries));
  return written;
}

}  // namespace godwit::ebpf
