// Crash-safe system calls inside a frozen source process. See the design in docs/architecture.md "Injection".
//
// The scratch area (one mapping) holds: a stub that loops over a vector of calls and then raises an ignored
// signal on its own thread; the vector; data; and a signal frame with the thread's original registers, mask
// and xstate, behind an rt_sigreturn. With this engine alive the signal is intercepted and the frame never
// runs. If this engine dies at any instruction the thread finishes the vector and returns by itself to
// exactly where it was.
#pragma once

#include <memory>

#include "engine/base/result.h"
#include "engine/model/address_range.h"
#include "engine/tracee/batch.h"
#include "engine/tracee/frozen.h"

namespace godwit::tracee {

class Injector : public BatchRunner {
 public:
  /// Maps the scratch area into the frozen process (a leftover of a dead engine is found and used or
  /// removed). ORDER: on the way in set registers first, then block signals; out: restore the mask first,
  /// then the registers. Errors: TargetGone, Unsupported.
  static Result<std::unique_ptr<Injector>> create(Frozen& frozen);
  ~Injector() override;

  Status run(pid_t tid, Batch& batch) override;

  /// Where the scratch lies: it belongs to no migration and is never sent.
  [[nodiscard]] AddressRange scratch() const;
  /// Unmaps the scratch area. After it the process has the maps it had.
  Status finish();

 private:
  struct State;
  explicit Injector(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace godwit::tracee
