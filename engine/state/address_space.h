// The address space of the process being built: its mappings follow the source's from round to round; the
// fields of the mm (brk, exe, auxv, arguments) are set in the freeze by the room; locks and seals by one of
// their own, after the last page.
#pragma once

#include "engine/state/context.h"
#include "engine/state/layout_plan.h"
#include "engine/state/room.h"

namespace godwit::state {

/// Process room "address-space".
extern const Room kAddressSpaceRoom;
/// Process room "memory-locks": mlock, mseal.
extern const Room kMemoryLocksRoom;

/// The destination's side of layout records. Shell thread only.
class AddressSpace {
 public:
  /// Makes the shell's mappings those of `next`; vdso areas are made by ARCH_MAP_VDSO_64 at their addresses.
  /// Pages of what stays are untouched. Errors: System naming the area; Corrupt when a shared object of it is
  /// unknown.
  Status follow(BuildContext& context, const Layout& next);
  /// The last page has arrived: what had to stay writable until now gets its protection.
  Status finish_protections(BuildContext& context);
  /// Maps `part` of an anonymous area anew, without pages, so that it can merge with its neighbours.
  Status renew(BuildContext& context, AddressRange part);
  [[nodiscard]] const Layout& layout() const { return layout_; }

 private:
  Layout layout_;
};

/// Whether `vma` can be carried at all; what cannot is a finding of check, and an instant to wait for at the
/// freeze.
bool is_movable(const Vma& vma);

/// Copies VmFlags and protection keys into `layout` (read from maps) from `detailed` (read from smaps a
/// moment ago) where both show the same memory. False if some area is new, so that only smaps can tell.
bool inherit_details(Layout& layout, const Layout& detailed);

}  // namespace godwit::state
