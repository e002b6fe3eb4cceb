#include "engine/tracee/shell_scratch.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "engine/base/units.h"

extern "C" {
extern const std::byte godwit_shell_stub_begin[];
extern const std::byte godwit_shell_stub_end[];
}

namespace godwit::tracee {
namespace {

struct CallSlot {  // as the stub reads it
  int64_t nr;
  uint64_t args[6];
  int64_t result;
};
static_assert(sizeof(CallSlot) == 64);

constexpr uint64_t kDoneOffset = 2048;
constexpr uint64_t kStackOffset =
    kPageSize;  // the stub needs no stack; a signal frame would land in its page
constexpr uint64_t kCallsOffset = kPageSize;
constexpr uint64_t kDataOffset = kCallsOffset + ShellScratch::kCallsPerRound * sizeof(CallSlot);
static_assert(kDataOffset + ShellScratch::kMaxData <= ShellScratch::kSize);

// Between the places of programs (from 0x55..., libraries below 0x7fff...), Go's heap and the sanitizers'
// shadows.
constexpr uint64_t kFirstPlace = 0x2a00'0000'0000;
constexpr uint64_t kStep = 16_MiB;
constexpr int kTries = 256;

constexpr uint64_t kLowest = 64_MiB;

}  // namespace

std::optional<RemoteAddr> find_hole(const Layout& layout, uint64_t size, uint64_t margin) {
  uint64_t best_start = 0;
  uint64_t best_size = 0;
  uint64_t cursor = kLowest;
  const auto consider = [&](uint64_t end) {
    if (end > cursor && end - cursor > best_size) {
      best_start = cursor;
      best_size = end - cursor;
    }
  };
  for (const Vma& vma : layout) {
    consider(std::min(vma.range.start.value(), kUserSpaceEnd));
    cursor = std::max(cursor, vma.range.end.value());
  }
  consider(kUserSpaceEnd);
  if (best_size < size + 2 * margin) return std::nullopt;
  return RemoteAddr(page_floor(best_start + (best_size - size) / 2));
}

ShellScratch::ShellScratch(std::byte* view) : view_(view), place_(reinterpret_cast<uint64_t>(view)) {}
ShellScratch::ShellScratch(ShellScratch&& other) noexcept
    : view_(std::exchange(other.view_, nullptr)), place_(other.place_) {}
ShellScratch::~ShellScratch() {
  if (view_ != nullptr) ::munmap(view_, kSize);
}

Result<ShellScratch> ShellScratch::create() {
  for (int i = 0; i < kTries; ++i) {
    void* place = reinterpret_cast<void*>(kFirstPlace + static_cast<uint64_t>(i) * kStep);
    void* got = ::mmap(place, kSize, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == MAP_FAILED && errno == EEXIST) continue;
    if (got == MAP_FAILED) return fail_errno("mmap", "the scratch area of a shell");
    ShellScratch made(static_cast<std::byte*>(got));
    std::memcpy(made.view_, godwit_shell_stub_begin,
                static_cast<size_t>(godwit_shell_stub_end - godwit_shell_stub_begin));
    return made;
  }
  return fail_errno("find a place", "the scratch area of a shell", EEXIST);
}

RemoteAddr ShellScratch::calls() const {
  return place_ + kCallsOffset;
}
RemoteAddr ShellScratch::data_address(uint32_t offset) const {
  return place_ + kDataOffset + offset;
}
RemoteAddr ShellScratch::done_word() const {
  return place_ + kDoneOffset;
}
RemoteAddr ShellScratch::stack_top() const {
  return place_ + kStackOffset;
}

void ShellScratch::put_data(Batch& batch) {
  batch.resolve(data_address(0));
  const std::vector<std::byte>& data = batch.data();
  if (!data.empty()) std::memcpy(view_ + kDataOffset, data.data(), data.size());
}

void ShellScratch::put_calls(Batch& batch, size_t first, size_t count) {
  const RemoteAddr data = data_address(0);
  for (size_t i = 0; i < count; ++i) {
    const Call& call = batch.calls()[first + i];
    CallSlot slot{.nr = call.nr, .args = {}, .result = 0};
    for (size_t a = 0; a < call.args.size(); ++a)
      slot.args[a] = call.args[a].is_data ? (data + call.args[a].value).value() : call.args[a].value;
    std::memcpy(view_ + kCallsOffset + i * sizeof slot, &slot, sizeof slot);
  }
  constexpr uint64_t kNotDone = 0;
  std::memcpy(view_ + kDoneOffset, &kNotDone, sizeof kNotDone);
}

void ShellScratch::take_results(Batch& batch, size_t first, size_t count) const {
  for (size_t i = 0; i < count; ++i)
    std::memcpy(&batch.calls()[first + i].result,
                view_ + kCallsOffset + i * sizeof(CallSlot) + offsetof(CallSlot, result), sizeof(int64_t));
}

void ShellScratch::take_data(Batch& batch) const {
  if (!batch.data().empty()) std::memcpy(batch.data().data(), view_ + kDataOffset, batch.data().size());
}

bool ShellScratch::done() const {
  uint64_t word = 0;
  std::memcpy(&word, view_ + kDoneOffset, sizeof word);
  return word == 1;
}

}  // namespace godwit::tracee
