// Debug logging. Library code never logs above debug: it returns errors, and the CLI prints once.
// Silent unless GODWIT_LOG=debug is set; writes to stderr.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace godwit {

bool log_enabled();
void log_write(std::string_view line);

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled()) [[unlikely]]
    log_write(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace godwit
