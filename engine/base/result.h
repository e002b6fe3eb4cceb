// Errors are values. `Result<T>` holds a T or an Error; `TRY(expr)` unwraps it or returns its error from the
// enclosing function. No exception crosses a module. CHECK is for our own bugs only: nothing that comes from
// a peer, an image or the target may ever be a CHECK.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace godwit {

/// Where an error arose. Not std::source_location: clang 14, which runs the linter and the fuzzers, lacks it.
struct SourceLocation {
  const char* file = "";
  unsigned line = 0;
  static constexpr SourceLocation current(const char* file = __builtin_FILE(),
                                          unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

/// What the *caller* does about it; the CLI derives its exit code from this alone.
enum class ErrorKind : uint8_t {
  kInvalid = 0,   ///< never constructed on purpose
  kRetry,         ///< a bad instant; the same call may succeed in a moment
  kTargetGone,    ///< the process exited or was killed
  kPeerGone,      ///< the connection to the other engine is lost
  kCorrupt,       ///< bytes from a peer or an image break the format
  kUnsupported,   ///< the kernel, the peer or this build cannot do it
  kRefused,       ///< check() found state that cannot move
  kDenied,        ///< privilege is missing
  kTimeout,       ///< a limit in time ran out
  kNotConverged,  ///< the limits of the migration were not reached
  kCancelled,     ///< a person or a signal asked to stop
  kInDoubt,       ///< after COMMIT, and the peer does not answer
  kUsage,         ///< arguments that make no sense
  kSystem,        ///< an operation of the operating system failed (disk full, out of memory, ...)
  kBug,           ///< our own broken invariant
  kUntrusted,     ///< one end of a connection does not accept the other's credentials
};

std::string_view to_string(ErrorKind kind);

struct Error {
  ErrorKind kind = ErrorKind::kInvalid;
  int err = 0;            ///< errno, or 0
  std::string operation;  ///< what failed: "ptrace(PTRACE_SEIZE)"
  std::string subject;    ///< on what: "pid 4711", "fd 7 (socket:[123])", "record 12 (pages)"
  std::string remedy;     ///< what to do about it; may be empty
  SourceLocation origin = SourceLocation::current();

  /// One line for people: "operation on subject: strerror: remedy".
  [[nodiscard]] std::string message() const;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Error error)
      : state_(std::make_unique<Error>(std::move(error))) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] T& value() & { return std::get<0>(state_); }
  [[nodiscard]] const T& value() const& { return std::get<0>(state_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(state_)); }
  T take() { return std::get<0>(std::move(state_)); }
  [[nodiscard]] const Error& error() const { return *std::get<1>(state_); }
  [[nodiscard]] Error take_error() { return std::move(*std::get<1>(state_)); }
  T* operator->() { return &value(); }
  T& operator*() & { return value(); }

 private:
  std::variant<T, std::unique_ptr<Error>> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error)
      : error_(std::make_unique<Error>(std::move(error))) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  void take() {}
  [[nodiscard]] const Error& error() const { return *error_; }
  [[nodiscard]] Error take_error() { return std::move(*error_); }

 private:
  std::unique_ptr<Error> error_;
};

using Status = Result<void>;

Error fail(ErrorKind kind, std::string operation, std::string subject, std::string remedy = {},
           SourceLocation origin = SourceLocation::current());

/// The kind follows from `err`: ESRCH is TargetGone, EPERM Denied, EPIPE PeerGone, EAGAIN/EINTR Retry, else
/// System.
Error fail_errno(std::string operation, std::string subject, int err = errno,
                 SourceLocation origin = SourceLocation::current());

[[noreturn]] void check_failed(const char* expression, SourceLocation origin);

}  // namespace godwit

#ifndef GODWIT_WITHOUT_MACROS  // for programs that have a TRY or CHECK of their own
#define GODWIT_CONCAT_(a, b) a##b
#define GODWIT_CONCAT(a, b) GODWIT_CONCAT_(a, b)
#define GODWIT_TRY_(result, expr)    \
  __extension__({                    \
    auto&& result = (expr);          \
    if (!(result).ok()) [[unlikely]] \
      return (result).take_error();  \
    (result).take();                 \
  })
#define TRY(expr) GODWIT_TRY_(GODWIT_CONCAT(try_result_, __COUNTER__), expr)
#define CHECK(cond) ((cond) ? static_cast<void>(0) : ::godwit::check_failed(#cond, SourceLocation::current()))
#endif
