// libbpf tells its reasons only by printing. For the loaders of this folder.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace godwit::ebpf {

/// Sends libbpf's words to the debug log and forgets what it said before on this thread.
void hear_libbpf();
/// Why `operation` on `subject` is not possible here: `err`, the first warning since, what it takes, and what
/// the caller does `without` it ("without it ..."). Kind: Unsupported.
Error unsupported(const char* operation, std::string subject, int err, std::string_view without);

}  // namespace godwit::ebpf
