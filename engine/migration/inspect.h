// What stands in a stream that was kept in a file, for people.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace godwit::migration {

/// A line for each record of the image at `path`. Errors: System, Corrupt naming the record (what came before
/// it was printed).
Status inspect(const std::string& path, const std::function<void(std::string_view line)>& print);

}  // namespace godwit::migration
