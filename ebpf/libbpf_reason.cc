#include "ebpf/libbpf_reason.h"

#include <bpf/libbpf.h>

#include <array>
#include <cstdarg>
#include <cstdio>

#include "engine/base/files.h"
#include "engine/base/log.h"

namespace godwit::ebpf {
namespace {

std::string& words() {
  static thread_local std::string said;
  return said;
}

int hear(libbpf_print_level level, const char* format, va_list args) {
  if (level == LIBBPF_DEBUG) return 0;
  std::array<char, 512> line{};
  const int length = std::vsnprintf(line.data(), line.size(), format, args);
  log_debug("{}", trim(line.data()));
  if (level == LIBBPF_WARN && words().empty()) words() = trim(line.data());
  return length;
}

}  // namespace

void hear_libbpf() {
  words().clear();
  ::libbpf_set_print(&hear);
}

const std::string& libbpf_reason() {
  return words();
}

}  // namespace godwit::ebpf
