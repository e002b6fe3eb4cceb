#include "engine/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <cstring>

namespace godwit {

bool log_enabled() {
  static const bool enabled = [] {
    const char* level = ::getenv("GODWIT_LOG");
    return level != nullptr && ::strcmp(level, "debug") == 0;
  }();
  return enabled;
}

void log_write(std::string_view line) {
  static const auto logger = [] {
    auto made = spdlog::stderr_logger_mt("godwit");
    made->set_level(spdlog::level::debug);
    made->set_pattern("%H:%M:%S.%f %t %v");
    return made;
  }();
  logger->debug(line);
}

}  // namespace godwit
