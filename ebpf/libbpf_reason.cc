#include "ebpf/libbpf_reason.h"

#include <bpf/libbpf.h>
#include <fmt/format.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <utility>

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

Error unsupported(const char* operation, std::string subject, int err, std::string_view without) {
  Error error = fail_errno(operation, std::move(subject), err);
  error.kind = ErrorKind::kUnsupported;
  error.remedy = fmt::format("{}{}needs CAP_BPF, CAP_PERFMON and a kernel with BTF; without it {}", words(),
                             words().empty() ? "" : "; ", without);
  return error;
}

}  // namespace godwit::ebpf
