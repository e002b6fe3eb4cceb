// Small helpers over whole files (mostly /proc): read them, write them, take their lines apart.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace godwit {

/// The whole file. Errors as errno says; ENOENT below /proc/PID is reported as TargetGone.
Result<std::string> read_file(const std::string& path);
Status write_file(const std::string& path, std::string_view text);
Result<std::string> read_link(const std::string& path);
/// Numeric names in a directory (/proc/PID/task, /proc/PID/fd), ascending.
Result<std::vector<int>> list_numbers(const std::string& directory);

std::vector<std::string_view> split(std::string_view text, char separator);  ///< empty pieces are dropped
std::string_view trim(std::string_view text);
/// The rest of the line that begins with `key` (such as "Umask:"), trimmed; nothing if there is no such line.
std::optional<std::string_view> field(std::string_view text, std::string_view key);
/// Nothing unless the whole of `text` is a number in `base`.
std::optional<uint64_t> parse_number(std::string_view text, int base = 10);

}  // namespace godwit
