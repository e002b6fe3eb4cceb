#include "engine/tracee/leftover.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/tracee/bare_call.h"
#include "engine/tracee/scratch.h"
#include "engine/tracee/steering.h"

namespace godwit::tracee {
namespace {

constexpr int kMostStops = 100'000;
constexpr uint64_t kStackSearched = 16_KiB;  // above a handler's stack pointer, where its signal frame lies

/// Where a thread may be that has not come home, and what a signal frame on top of it would show.
class Inside {
 public:
  Inside(const Memory& memory, const std::vector<Leftover>& leftovers, RemoteAddr window) : memory_(memory) {
    for (const Leftover& leftover : leftovers) {
      areas_.push_back(leftover.scratch);
      const RemoteAddr stub = leftover.scratch.start + kStubOffset;
      saved_.push_back({stub, stub + stub_code().size() + 1});  // as a saved rip
    }
    if (window == RemoteAddr()) return;
    areas_.push_back({window, window + kWindowSize});
    saved_.push_back({window + kWindowFrame, window + kWindowFrame + 9});  // as a saved rsp
  }

  [[nodiscard]] bool holds(const user_regs_struct& general) const {
    return in(areas_, general.rip) || in(areas_, general.rsp) || handler_on_top(general.rsp);
  }

 private:
  static bool in(const std::vector<AddressRange>& ranges, uint64_t value) {
    return std::any_of(ranges.begin(), ranges.end(),
                       [=](AddressRange r) { return r.contains(RemoteAddr(value)); });
  }

  /// A handler on a stack of its own leaves no trace in the registers, but it has the frame above it.
  [[nodiscard]] bool handler_on_top(uint64_t sp) const {
    std::array<uint64_t, kPageSize / sizeof(uint64_t)> words{};
    for (uint64_t at = sp & ~uint64_t{7}, end = sp + kStackSearched; at < end;) {
      const uint64_t size = std::min(page_floor(at) + kPageSize, end) - at;
      const auto part = std::as_writable_bytes(std::span(words)).first(size & ~uint64_t{7});
      if (part.empty() || !memory_.read(RemoteAddr(at), part).ok()) return false;
      const auto count = static_cast<ptrdiff_t>(part.size() / sizeof(uint64_t));
      if (std::any_of(words.begin(), words.begin() + count, [&](uint64_t word) { return in(saved_, word); }))
        return true;
      at += part.size();
    }
    return false;
  }

  const Memory& memory_;
  std::vector<AddressRange> areas_, saved_;
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

}  // namespace

AddressRange find_idle_scratch(const Memory& memory) {
  const auto header = memory.read_value<ScratchHeader>(RemoteAddr(kScratchHint));
  if (!header.ok() || header.value().magic != kScratchMagic || header.value().busy != 0) return {};
  return range_of(kScratchHint, kScratchHint + kScratchSize);
}

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

Status bring_threads_home(Frozen& frozen, const Memory& memory, const std::vector<Leftover>& leftovers,
                          RemoteAddr window, bool has_seccomp) {
  const bool busy = std::any_of(leftovers.begin(), leftovers.end(), [](const Leftover& l) { return l.busy; });
  if (!busy && window == RemoteAddr()) return {};
  const Inside inside(memory, leftovers, window);
  const std::vector<FrozenThread> threads = frozen.threads();  // a copy: settle() changes the entries
  for (const FrozenThread& thread : threads) {
    if (inside.holds(thread.original)) TRY(bring_home(frozen, thread, inside, has_seccomp));
  }
  return {};
}

}  // namespace godwit::tracee
