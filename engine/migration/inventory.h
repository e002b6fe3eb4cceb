// What speaks against a move, and what the destination has to know before the first byte of memory: the
// process tree, this host's facts, the files. Nothing of the process is touched. Any thread.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/migration/link.h"
#include "engine/state/finding.h"
#include "engine/state/open_file.h"
#include "engine/state/room.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// Under this name the destination speaks of files that it does not have, or has otherwise.
constexpr std::string_view kFilesRoom = "files";

/// The inventory of a process: facts of this host, the tree, the files it needs.
Result<wire::Inventory> take_inventory(const tracee::Process& process);

/// "ADDR/LEN@DEV", each, as the rooms need them.
state::Intent intent_of(const std::vector<std::string>& move_addresses);

/// This host's findings. What a program holds for an instant only (the journal of a transaction, deleted
/// while we look) is looked at again: a fatal finding about a file is one that does not pass. Errors:
/// TargetGone, Denied.
Result<state::Findings> check_here(const tracee::Process& process, const state::Intent& intent);

/// The destination's: sends it the inventory and waits for the answer; again as above. Without a fatal
/// finding the destination has made its shell.
Result<state::Findings> check_there(Link& link, const tracee::Process& process,
                                    const std::vector<std::string>& move_addresses);

/// Tells them, and refuses for the first fatal one. Errors: Refused.
Status judge(const state::Findings& findings, const std::function<void(const state::Findings&)>& tell);

}  // namespace godwit::migration
