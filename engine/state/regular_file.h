// Descriptors of files that have a name: regular files, directories, and anything held by O_PATH. They are
// opened again by that name; the file must be the same on the destination.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/state/open_file.h"

namespace godwit::state {

constexpr std::string_view kRegularFileRoom = "regular-file";

/// Paths of the regular files among `files` that the process only reads, each once, sorted: the inventory
/// compares their contents with the destination's. A file that it may write changes under way: finish()
/// compares its size.
std::vector<std::string> collect_paths(const std::vector<OpenFile>& files);
/// Paths of the others: they must be there and be regular files.
std::vector<std::string> collect_written_paths(const std::vector<OpenFile>& files);

}  // namespace godwit::state
