// The address space of the process being built: its mappings follow the source's from round to round; the
// fields of the mm (brk, exe, auxv, arguments) and what must come last (seals, locks) are set in the freeze
// by the room.
#pragma once

#include "engine/state/context.h"
#include "engine/state/layout_plan.h"
#include "engine/state/room.h"

namespace godwit::state {

/// Process room "address-space".
extern const Room kAddressSpaceRoom;

/// The destination's side of layout records. Shell thread only.
class AddressSpace {
 public:
  /// Makes the shell's mappings those of `next`; vdso areas are made by ARCH_MAP_VDSO_64 at their addresses.
  /// Pages of what stays are untouched. Errors: System naming the area; Corrupt when a shared object of it is
  /// unknown.
  Status follow(BuildContext& context, const Layout& next);
  /// Maps `part` of an anonymous area anew, without pages, so that it can merge with its neighbours.
  Status renew(BuildContext& context, AddressRange part);
  [[nodiscard]] const Layout& layout() const { return layout_; }

 private:
  Layout layout_;
};

/// Copies VmFlags and protection keys into `layout` (read from maps) from `detailed` (read from smaps a
/// moment ago) where both show the same memory. False if some area is new, so that only smaps can tell.
bool inherit_details(Layout& layout, const Layout& detailed);

}  // namespace godwit::state
