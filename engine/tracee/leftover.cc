#include "engine/tracee/leftover.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/tracee/bare_call.h"
#include "engine/tracee/scratch.h"
#include "engine/tracee/steering.h"

namespace godwit::tracee {
namespace {

constexpr int kMostStops = 100'000;
constexpr uint64_t kStackSearched = 64_KiB;  // above a stack pointer, where the frames of handlers lie

/// Where a thread may be that has not come home.
class Inside {
 public:
  Inside(const Memory& memory, const std::vector<Leftover>& leftovers, RemoteAddr window) : memory_(memory) {
    for (const Leftover& leftover : leftovers) areas_.push_back(leftover.scratch);
    if (window != RemoteAddr()) areas_.push_back({window, window + kWindowSize});
  }

  [[nodiscard]] bool holds(const user_regs_struct& general) const {
    return in(general.rip) || in(general.rsp) || under_a_handler(general.rsp);
  }

 private:
  [[nodiscard]] bool in(uint64_t value) const {
    return std::any_of(areas_.begin(), areas_.end(),
                       [=](AddressRange r) { return r.contains(RemoteAddr(value)); });
  }

  /// A handler on a stack of its own shows nothing in the registers, but the signal frame above it does: rsp
  /// and rip of what it interrupted, and two words on, the selectors by which the frame is known.
  [[nodiscard]] bool under_a_handler(uint64_t sp) const {
    constexpr uint64_t kSelectors = 0xffff'0000'0000'ffff, kUser64 = 0x002b'0000'0000'0033;
    const std::vector<uint64_t> words = read_stack(sp);
    for (size_t i = 3; i < words.size(); ++i) {
      if ((words[i] & kSelectors) == kUser64 && (in(words[i - 3]) || in(words[i - 2]))) return true;
    }
    return false;
  }

  /// What is mapped of kStackSearched bytes from `sp` on.
  [[nodiscard]] std::vector<uint64_t> read_stack(uint64_t sp) const {
    std::vector<uint64_t> words;
    for (uint64_t at = sp & ~uint64_t{7}, end = at + kStackSearched; at < end;) {
      const uint64_t size = std::min(page_floor(at) + kPageSize, end) - at;
      const size_t old = words.size();
      words.resize(old + size / sizeof(uint64_t));
      if (memory_.read(RemoteAddr(at), std::as_writable_bytes(std::span(words).subspan(old))).ok()) {
        at += size;
        continue;
      }
      words.resize(old);
      break;
    }
    return words;
  }

  const Memory& memory_;
  std::vector<AddressRange> areas_;
};

Status bring_home(Frozen& frozen, const FrozenThread& thread, const Inside& inside, bool has_seccomp) {
  TRY(prepare_thread(frozen, thread, has_seccomp));
  StopWaiter waiter = TRY(StopWaiter::create());
  int signal = 0;
  for (int stops = 0; stops < kMostStops; ++stops) {
    const Stop stop = TRY(run_to_stop(frozen, thread.tid, waiter, Run::kToSyscallStop, signal));
    signal = stop.is_signal_delivery() ? stop.signal() : 0;
    if (signal == 0 && !inside.holds(TRY(read_general(thread.tid)))) return frozen.settle(thread.tid);
  }
  return fail(ErrorKind::kRetry, "bring a thread home", fmt::format("thread {}", thread.tid),
              "an engine died while it injected into it, and it does not come back");
}

/// The scratch areas that lie in the process.
Result<std::vector<Leftover>> find_leftovers(const Memory& memory, const Layout& layout) {
  std::vector<Leftover> found;
  for (const Vma& vma : layout) {
    if (!may_be_scratch(vma)) continue;
    const auto header = TRY(memory.read_value<ScratchHeader>(vma.range.start));
    const bool marked = header.magic == kScratchMagic;
    const bool unwritten =
        header.magic == decltype(header.magic){} && vma.range.start.value() == kScratchHint;
    if (marked || unwritten) found.push_back({vma.range, unwritten || header.busy != 0});
  }
  return found;
}

}  // namespace

AddressRange find_idle_scratch(const Memory& memory) {
  const auto header = memory.read_value<ScratchHeader>(RemoteAddr(kScratchHint));
  if (!header.ok() || header.value().magic != kScratchMagic || header.value().busy != 0) return {};
  return range_of(kScratchHint, kScratchHint + kScratchSize);
}

Result<std::vector<Leftover>> bring_threads_home(Frozen& frozen, const Memory& memory, Layout& layout,
                                                 bool has_seccomp) {
  std::vector<Leftover> leftovers = TRY(find_leftovers(memory, layout));
  const RemoteAddr window = abandoned_window(memory, layout);
  const bool busy = std::any_of(leftovers.begin(), leftovers.end(), [](const Leftover& l) { return l.busy; });
  if (!busy && window == RemoteAddr()) return leftovers;
  const Inside inside(memory, leftovers, window);
  const std::vector<FrozenThread> threads = frozen.threads();  // a copy: settle() changes the entries
  bool any = false;
  for (const FrozenThread& thread : threads) {
    if (!inside.holds(thread.original)) continue;
    TRY(bring_home(frozen, thread, inside, has_seccomp));
    any = true;
  }
  if (!any) return leftovers;
  layout = TRY(frozen.process().layout());
  return find_leftovers(memory, layout);
}

}  // namespace godwit::tracee
