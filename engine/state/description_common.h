// What every open file description has beside its room's state: status flags, the owner that SIGIO and SIGURG
// go to, and, for sockets and pipes, the owner of an inode that nothing else names.
#pragma once

#include <optional>

#include "engine/base/result.h"
#include "engine/state/context.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {

/// The flags that F_SETFL can change and that are ours to restore (O_ASYNC comes with its owner).
int changeable_flags(int flags);

/// A finding when the owner of the description's signals is another process. Duplicates it for an instant.
Status check_async_owner(const CheckContext& ctx, const OpenFile& file, Findings& findings);
/// Fills flags, async_owner and inode_owner. Errors: Unsupported for a foreign owner of signals.
Status capture_common(const CaptureContext& ctx, const OpenFile& file, wire::Description& out);
/// `fd` is in its final place. Uses the leader of the shell for F_SETOWN, which names a pid of the process's
/// world.
Status apply_common(BuildContext& ctx, int fd, const wire::Description& description);

}  // namespace godwit::state
