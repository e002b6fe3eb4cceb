// libbpf tells its reasons only by printing. For the loaders of this folder.
#pragma once

#include <string>

namespace godwit::ebpf {

/// Sends libbpf's words to the debug log and forgets what it said before on this thread.
void hear_libbpf();
/// The first warning since.
const std::string& libbpf_reason();

}  // namespace godwit::ebpf
