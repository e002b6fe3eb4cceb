// A process beside the source engine that outlives it: when the engine is killed at whatever instant, the
// guardian puts the target and this host back (before COMMIT), or finds out what became of it (after). It
// touches nothing while the engine lives; a memory page both share tells it how far things are.
//
// Lifecycle: start() forks it before the engine has threads; the engine's end closes a pipe; dismiss() says
// that there is nothing to do.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <string>

#include "engine/base/fd.h"
#include "engine/base/mapping.h"
#include "engine/base/result.h"
#include "engine/migration/link_options.h"
#include "engine/migration/session_binding.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

class Guardian {
 public:
  /// Forks the guardian for `target`. `link` is for asking the peer after COMMIT; its credentials are loaded
  /// already.
  static Result<Guardian> start(pid_t target, const LinkOptions& link);
  Guardian(Guardian&&) noexcept = default;
  Guardian& operator=(Guardian&&) = delete;
  ~Guardian();

  // ORDER: each before the step it speaks of.
  void touching();  ///< the target may be changed from here on
  void stopping();  ///< a SIGSTOP of ours may be there
  /// COMMIT may leave; `key` proves that we may ask about it.
  void committing(const wire::SessionId& session, const QueryKey& key);
  void departing();  ///< the original is gone; only its addresses still take leave of this host
  /// What undoes the address move on this host (AddressUndo::to_text()). Errors: Unsupported when it is too
  /// long.
  Status remember_addresses(const std::string& undo);
  /// All is in order; the guardian ends without doing anything. Waits for it.
  void dismiss();

 private:
  struct Shared;
  Guardian() = default;
  [[nodiscard]] Shared& shared() const;
  static void live(Shared& shared, int engine_pipe, pid_t engine, const LinkOptions& link);

  Mapping memory_;
  Fd pipe_;
  pid_t pid_ = 0;
};

/// Puts a target whose engine died before COMMIT back as it was: lets threads leave the scratch, removes it,
/// closes a userfaultfd left inside, takes sockets out of repair mode, undoes our stop if `stopped`. Errors:
/// TargetGone, ...
Status restore_target(pid_t pid, bool stopped);

}  // namespace godwit::migration
