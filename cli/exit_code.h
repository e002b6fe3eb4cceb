// What godwit's exit code tells (docs/process-support.md lists them for people).
#pragma once

#include <godwit/godwit.h>

namespace godwit::cli {

enum ExitCode : int {
  kDone = 0,
  kFailed = 1,  ///< the original runs
  kUsage = 2,
  kRefused = 3,       ///< check found state that cannot move
  kNotConverged = 4,  ///< the original runs
  kCancelled = 5,
  kTransport = 6,  ///< or authentication
  kInDoubt = 7,
  kPrivilege = 8,
};

constexpr ExitCode exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return kUsage;
    case ErrorKind::kRefused:
    case ErrorKind::kUnsupported:
      return kRefused;
    case ErrorKind::kNotConverged:
      return kNotConverged;
    case ErrorKind::kCancelled:
      return kCancelled;
    case ErrorKind::kPeerGone:
    case ErrorKind::kTimeout:
    case ErrorKind::kUntrusted:
      return kTransport;
    case ErrorKind::kInDoubt:
      return kInDoubt;
    case ErrorKind::kDenied:
      return kPrivilege;
    default:
      return kFailed;
  }
}

}  // namespace godwit::cli
