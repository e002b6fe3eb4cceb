#include "engine/base/result.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace godwit {

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalid:
      return "invalid";
    case ErrorKind::kRetry:
      return "retry";
    case ErrorKind::kTargetGone:
      return "target-gone";
    case ErrorKind::kPeerGone:
      return "peer-gone";
    case ErrorKind::kCorrupt:
      return "corrupt";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kRefused:
      return "refused";
    case ErrorKind::kDenied:
      return "denied";
    case ErrorKind::kTimeout:
      return "timeout";
    case ErrorKind::kNotConverged:
      return "not-converged";
    case ErrorKind::kCancelled:
      return "cancelled";
    case ErrorKind::kInDoubt:
      return "in-doubt";
    case ErrorKind::kUsage:
      return "usage";
    case ErrorKind::kSystem:
      return "system";
    case ErrorKind::kBug:
      return "bug";
    case ErrorKind::kUntrusted:
      return "untrusted";
  }
  return "invalid";
}

std::string Error::message() const {
  std::string text = operation;
  if (!subject.empty()) text += fmt::format(" on {}", subject);
  if (err != 0) text += fmt::format(": {}", strerror(err));
  if (!remedy.empty()) text += fmt::format(" ({})", remedy);
  return text;
}

Error fail(ErrorKind kind, std::string operation, std::string subject, std::string remedy,
           SourceLocation origin) {
  return Error{kind, 0, std::move(operation), std::move(subject), std::move(remedy), origin};
}

namespace {
ErrorKind kind_of(int err) {
  switch (err) {
    case ESRCH:
      return ErrorKind::kTargetGone;
    case EPERM:
    case EACCES:
      return ErrorKind::kDenied;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ENOTCONN:
      return ErrorKind::kPeerGone;
    case EAGAIN:
    case EINTR:
      return ErrorKind::kRetry;
    case ETIMEDOUT:
      return ErrorKind::kTimeout;
    case ENOSYS:
    case EOPNOTSUPP:
      return ErrorKind::kUnsupported;
    default:
      return ErrorKind::kSystem;
  }
}
}  // namespace

Error fail_errno(std::string operation, std::string subject, int err, SourceLocation origin) {
  return Error{kind_of(err), err, std::move(operation), std::move(subject), {}, origin};
}

void check_failed(const char* expression, SourceLocation origin) {
  fmt::print(stderr, "godwit: bug: CHECK({}) failed at {}:{}\n", expression, origin.file, origin.line);
  std::abort();
}

}  // namespace godwit
