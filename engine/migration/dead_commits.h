// What an engine of this host left behind that was killed in the middle of a commit: between `committing` in
// the journal and the first instruction of the process. The kernel has ended an unreleased process by itself;
// addresses that were claimed for it would stay. Place: receiver and receive_session write the note and clear
// up after others. Any thread.
#pragma once

#include <sys/types.h>

#include <string>

#include "engine/base/result.h"
#include "engine/migration/session_binding.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

/// Writes `committing` for the session, with what another engine needs to clear up should this one die: who
/// we are, which process it is about, and what gives its addresses back (AddressUndo::to_text(), may be
/// empty), and who may ask about it. `lacks`: it will run without all of its memory.
Status note_commit(const wire::SessionId& session, pid_t process, const std::string& undo,
                   const QueryKey& key, bool lacks);

/// For every commit whose engine is dead: the process lives, so it was released: `running`, or `lacking`. It
/// does not: its addresses are given back; the verdict stays unknown, as it may have run and ended.
void clear_dead_commits();

}  // namespace godwit::migration
