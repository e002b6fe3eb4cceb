#include "engine/state/finding.h"

#include <fmt/format.h>

#include <algorithm>

namespace godwit::state {

bool any_fatal(const Findings& findings) {
  return std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.fatal; });
}

std::string to_line(const Finding& f) {
  return fmt::format("{}: {}: {}: {}; {}", f.room, f.subject, f.what, f.why, f.remedy);
}

Error capture_error(ErrorKind kind, const Finding& f, SourceLocation origin) {
  return fail(kind, "capture " + f.what, f.subject, f.why + ": " + f.remedy, origin);
}

}  // namespace godwit::state
