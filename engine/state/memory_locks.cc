// Room "memory-locks": what makes areas resist, mlock and mseal. It comes after the last page.
//
// KERNEL: a locked area faults its pages in at mlock, and again when mprotect makes it writable; while
// missing pages are installed through a userfaultfd such a fault sleeps for ever. And what is locked or
// sealed takes no MADV_DONTNEED and no guard, which the last pass still needs.
#include <sys/syscall.h>

#include "engine/state/address_space.h"
#include "engine/wire/rooms_memory.pb.h"

namespace godwit::state {
namespace {

using tracee::Batch;

constexpr std::string_view kName = "memory-locks";
constexpr long kSysMseal = 462;
constexpr int kMlockOnFault = 1;  // linux/mman.h

using List = google::protobuf::RepeatedField<uint64_t>;

Status check(const CheckContext&, Findings&) {
  return {};
}

void add(List& list, AddressRange range) {
  list.Add(range.start.value());
  list.Add(range.end.value());
}

Result<std::string> capture(CaptureContext& context) {
  wire::MemoryLocks state;
  for (const Vma& vma : context.layout) {
    if (vma.has_flag("sl")) add(*state.mutable_sealed(), vma.range);
    if (!vma.has_flag("lo")) continue;
    add(vma.has_flag("lf") ? *state.mutable_locked_on_fault() : *state.mutable_locked(), vma.range);
  }
  return state.SerializeAsString();
}

Status prepare(BuildContext&, std::string_view) {
  return {};
}

template <typename Each>
void for_ranges(const List& list, Each each) {
  for (int i = 0; i + 1 < list.size(); i += 2) each(list.Get(i), list.Get(i + 1) - list.Get(i));
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::MemoryLocks>(kName, message));
  Batch batch;
  // KERNEL: mlock locks what cannot be faulted in (PROT_NONE, a guard) all the same, and answers ENOMEM.
  for_ranges(state.locked(), [&](uint64_t at, uint64_t size) {
    batch.call_may_fail(SYS_mlock, {at, size}, fmt::format("mlock {:#x}", at));
  });
  for_ranges(state.locked_on_fault(), [&](uint64_t at, uint64_t size) {
    batch.call(SYS_mlock2, {at, size, kMlockOnFault}, fmt::format("mlock2 {:#x}", at));
  });
  for_ranges(state.sealed(), [&](uint64_t at, uint64_t size) {
    batch.call(kSysMseal, {at, size, 0}, fmt::format("mseal {:#x}", at));
  });
  return batch.empty() ? Status{} : context.run(batch);
}

}  // namespace

const Room kMemoryLocksRoom{kName, false, check, capture, prepare, finish, true};

}  // namespace godwit::state
