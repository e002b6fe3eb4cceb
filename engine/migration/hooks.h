// Programs of the person's own, run at the turning points of a migration: DIR/pre-freeze, frozen, pre-resume,
// resumed, aborted. Each gets GODWIT_HOOK, GODWIT_PID and GODWIT_PEER in its environment. A missing program
// is no error; one that fails before the handover ends the migration. The time of `frozen` and `pre-resume`
// is part of the blackout.
#pragma once

#include <sys/types.h>

#include <string>

#include "engine/base/result.h"

namespace godwit::migration {

class Hooks {
 public:
  Hooks() = default;
  explicit Hooks(std::string folder) : folder_(std::move(folder)) {}
  /// Blocks until the program ends. Errors: System naming the program and its exit.
  Status run(const char* name, pid_t pid, const std::string& peer) const;

 private:
  std::string folder_;  ///< empty: none
};

}  // namespace godwit::migration
