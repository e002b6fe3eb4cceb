// What outlives an engine: small files in /run/godwit, which a host that goes down takes with it, as it takes
// the processes. The source's says which stopped original waits for a verdict, the destination's what became
// of a session.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "engine/base/result.h"
#include "engine/migration/session_binding.h"
#include "engine/wire/state.pb.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

inline constexpr const char* kJournalFolder = "/run/godwit";

/// Source: written before COMMIT leaves, removed when the verdict is known.
struct InDoubt {
  pid_t pid = 0;
  uint64_t start_time = 0;  ///< of the process: a recycled pid is not it
  std::string destination;
  std::string session;  ///< hex
  std::string undo;     ///< AddressUndo::to_text() of an address move, or empty
};
Status write_in_doubt(const InDoubt& entry);
/// Nothing if there is no entry for the pid. Errors: Corrupt, System.
Result<std::optional<InDoubt>> read_in_doubt(pid_t pid);
void remove_in_doubt(pid_t pid);

inline constexpr std::string_view kRunningState = "running";
inline constexpr std::string_view kLackingState = "lacking";  ///< it runs, and pages are missing
/// Destination: `committing` is written before the first thread may run, `running` once all do.
/// `key`: who may ask.
Status write_verdict(const wire::SessionId& session, std::string_view state, const QueryKey& key);
/// The same for a path in the folder.
Status write_verdict_at(const std::string& path, std::string_view state, const QueryKey& key);
void remove_verdict(const wire::SessionId& session);
/// ABORTED when nothing was ever written: without `committing` no thread has run. UNKNOWN for `committing`.
wire::Verdict::Value read_verdict(const wire::SessionId& session);
/// Of the session, if anything was written; one that nobody can prove if that is damaged.
std::optional<QueryKey> read_query_key(const wire::SessionId& session);

/// In the text of an entry.
QueryKey find_key(std::string_view text);

}  // namespace godwit::migration
