// Crash-safe system calls inside a frozen source process. See the design in docs/architecture.md "Injection".
//
// The scratch area (one mapping) holds: a stub that loops over a vector of calls and then raises an ignored
// signal on its own thread; the vector; data; and a signal frame with the thread's original registers, mask
// and xstate, behind an rt_sigreturn. With this engine alive the signal is intercepted and the frame never
// runs. If this engine dies at any instruction the thread finishes the vector and returns by itself to
// exactly where it was.
//
// What that death may still show, for lack of anything better:
//  - a nanosleep() or poll() that was interrupted sleeps its whole time again (rt_sigreturn cannot restart a
//  call from
//    where it was; the thaw of a living engine can);
//  - calls of the vector that were still to come meet the seccomp filter of the process, suspended until
//  then;
//  - where a process has neither the instructions nor a dead place in its main stack for a signal frame
//    (bare_call.h), the two calls that map and unmap the scratch are each a window of 20 us in which the
//    death of this engine kills the process.
#pragma once

#include <memory>

#include "engine/base/result.h"
#include "engine/model/address_range.h"
#include "engine/tracee/batch.h"
#include "engine/tracee/frozen.h"

namespace godwit::tracee {

class Injector : public BatchRunner {
 public:
  /// Maps the scratch area into the frozen process, which must outlive the injector (a leftover of a dead
  /// engine is found and used or removed, and a thread still inside is let run out first). `layout`, if the
  /// caller has it, saves reading it again. On failure the process is as it was. Errors: TargetGone;
  /// Unsupported (32-bit code, syscall user dispatch, shadow stack); Denied (a seccomp filter that cannot be
  /// suspended); System (no room for the mapping).
  static Result<std::unique_ptr<Injector>> create(Frozen& frozen, const Layout* layout = nullptr);
  ~Injector() override;

  /// Any number of calls; the data that one call refers to may span 400 KiB. All calls run on `tid`, in
  /// rounds as large as the scratch allows, with all signals blocked but the injector's own. Afterwards the
  /// thread stands as it did. Errors: of the first call that failed; TargetGone; Timeout after 30 s.
  Status run(pid_t tid, Batch& batch) override;

  /// Where the scratch lies: it belongs to no migration and is never sent.
  [[nodiscard]] AddressRange scratch() const;
  /// Unmaps the scratch area. After it the process has the maps it had.
  Status finish();
  /// Leaves the scratch in the process for the next freeze, whose create() then costs only microseconds. The
  /// object is empty afterwards. Whoever does this must see to its removal: remove_leftover_scratch().
  Status leave_mapped();

 private:
  struct State;
  explicit Injector(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Removes what an engine left behind, dead or not, and lets a thread that is still inside run out first. The
/// process then has the maps it had. Does nothing when there is nothing. Errors: as Injector::create().
Status remove_leftover_scratch(Frozen& frozen);

}  // namespace godwit::tracee
