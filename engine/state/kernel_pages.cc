#include "engine/state/kernel_pages.h"

#include <algorithm>

#include "engine/model/page_set.h"
#include "engine/state/process_rooms.h"
#include "engine/state/room.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {
namespace {

/// struct robust_list_head, linux/futex.h.
struct RobustListHead {
  uint64_t next;
  int64_t futex_offset;
  uint64_t pending;
};
constexpr int kRobustListLimit = 2048;  // ROBUST_LIST_LIMIT, linux/futex.h
constexpr uint64_t kMostPolled = 8 << 20;

void add(PageSet& pages, uint64_t address, uint64_t size) {
  if (address == 0 || address >= kUserSpaceEnd || size > kUserSpaceEnd - address) return;
  pages.insert(range_of(page_floor(address), page_ceil(address + size)));
}

/// KERNEL: a thread that exits clears its tid and walks its robust list without waiting for a missing page
/// (PF_EXITING, fs/userfaultfd.c): whoever joins it, or waits for its locks, would wait for ever.
void add_robust_list(PageSet& pages, uint64_t head, const tracee::Memory& memory) {
  add(pages, head, sizeof(RobustListHead));
  const auto read = memory.read_value<RobustListHead>(RemoteAddr(head));
  if (!read.ok()) return;
  const RobustListHead& list = read.value();
  const auto add_lock = [&](uint64_t entry) {
    add(pages, entry, sizeof entry);
    add(pages, entry + static_cast<uint64_t>(list.futex_offset), sizeof(uint32_t));
  };
  if (list.pending != 0) add_lock(list.pending & ~uint64_t{1});
  uint64_t entry = list.next & ~uint64_t{1};
  for (int i = 0; i < kRobustListLimit && entry != head && entry != 0; ++i) {
    add_lock(entry);
    const auto next = memory.read_value<uint64_t>(RemoteAddr(entry));
    if (!next.ok()) return;
    entry = next.value() & ~uint64_t{1};
  }
}

/// A call that is taken up again at the destination reads what it points to while the process stands still.
void add_call(PageSet& pages, const user_regs_struct& general, const wire::TimedWait& wait) {
  for (const uint64_t pointer : {general.rdi, general.rsi, general.rdx, general.r10, general.r8, general.r9})
    add(pages, pointer, sizeof(uint64_t) * 8);
  if (wait.kind() == wire::TimedWait::POLL)
    add(pages, general.rdi, std::min<uint64_t>(general.rsi * 8, kMostPolled));
  add(pages, wait.rest_at(), 2 * sizeof(uint64_t));
}

}  // namespace

Result<std::vector<AddressRange>> kernel_pages(const wire::RoomState& threads, const tracee::Memory& memory) {
  const auto state = TRY(parse_message<wire::ThreadsState>("threads", threads.payload()));
  PageSet pages;
  for (const auto& thread : state.threads()) {
    add(pages, thread.rseq_address(), thread.rseq_size());
    add(pages, thread.clear_child_tid(), sizeof(uint32_t));
    if (thread.robust_list() != 0) add_robust_list(pages, thread.robust_list(), memory);
    const auto general = TRY(value_of<user_regs_struct>("threads", thread.general()));
    add_call(pages, general, thread.wait());
    // Not for the kernel: where each thread goes on at once.
    add(pages, general.rip, 1);
    add(pages, page_floor(general.rsp), 2 * kPageSize);
  }
  return pages.runs();
}

}  // namespace godwit::state
