// The limits of a migration as the command line gives them.
#pragma once

#include <godwit/godwit.h>
#include <string_view>

#include "cli/verbs.h"

namespace godwit::cli {

/// "64M", "1G", "125000000". Errors: Usage naming `what`.
Result<uint64_t> parse_size(std::string_view text, const char* what);
Result<migration::Changes> changes_of(const LimitArguments& arguments);
Result<migration::PostcopyLimits> postcopy_of(const PostcopyArguments& arguments);

}  // namespace godwit::cli
