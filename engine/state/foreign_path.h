// Paths that a peer or an image names. The kernel gave them to the source, so they are absolute and have no
// "." or ".." in them; whatever else comes is refused before anything is opened. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::state {

/// Errors: Corrupt naming the path.
Status require_plain_path(std::string_view path, const char* use);

/// Opens a regular file that is to be mapped or filled. To write to it, its name itself must be no symbolic
/// link: whoever may make one on this host could turn our writes elsewhere. Errors: Corrupt, Unsupported (no
/// regular file), System.
Result<Fd> open_foreign_file(const std::string& path, bool writable, const char* use);

}  // namespace godwit::state
