// Descriptors of files that have a name: regular files, directories, and anything held by O_PATH. They are
// opened again by that name; the file must be the same on the destination.
#pragma once

#include <string>
#include <vector>

#include "engine/state/open_file.h"

namespace godwit::state {

/// Paths of the regular files among `files`, each once, sorted: the inventory compares them with the
/// destination's.
std::vector<std::string> collect_paths(const std::vector<OpenFile>& files);

}  // namespace godwit::state
