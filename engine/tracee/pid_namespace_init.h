// Pid 1 of a pid namespace made for one migrated process: a few instructions on one page, without descriptors
// of the engine and without its memory. Dies with the engine until told that the process exists; from then on
// it lives until the process and all that it left behind have ended.
#pragma once

#include <sys/types.h>

#include "engine/base/result.h"

namespace godwit::tracee {

/// To be called on a ShellThread whose next children are born in a new pid namespace. `lifeline`: readable
/// end of file means that the engine is dead. `inner_pid`: of the process to come. Gives the init's pid as
/// this engine sees it.
Result<pid_t> start_pid_namespace_init(int lifeline, pid_t inner_pid);
/// The process exists (and dies by itself if the engine does).
Status tell_pid_namespace_init(pid_t init);

}  // namespace godwit::tracee
