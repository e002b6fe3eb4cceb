// The rooms that hold a process together. registry.cc lists them.
#pragma once

#include <cstring>

#include "engine/state/room.h"

namespace godwit::state {

extern const Room
    kThreadsRoom;  ///< registers, TLS, rseq, robust lists, alternate stacks, masks, names, scheduling
extern const Room kSignalsRoom;  ///< handlers and pending signals
extern const Room kTimersRoom;   ///< interval timers and POSIX timers
extern const Room kProcessRoom;  ///< working directory, umask, limits, personality, prctl attributes
extern const Room
    kCredentialsRoom;  ///< ids, groups, capabilities, no_new_privs: last, for they take privileges away

/// The name under which the process room reports children, which may end at any moment.
constexpr std::string_view kChildren = "children";
constexpr std::string_view kAddressSpace = "address-space";
constexpr std::string_view kDescriptorsRoom = "descriptors";

/// The id that thread `tid` (as this engine sees it) has in its own pid namespace. Errors: TargetGone.
Result<pid_t> inner_tid(const tracee::Process& process, pid_t tid);

/// What the frozen thread says of itself; asked once for all rooms. Errors: TargetGone, those of the runner.
Result<const ThreadView*> view_of(CaptureContext& context, pid_t tid);

/// A structure of the kernel's ABI as a message's bytes, and back. Errors: Corrupt when the size differs.
template <typename T>
std::string bytes_of(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
template <typename T>
Result<T> value_of(std::string_view room, std::string_view bytes) {
  T value;
  if (bytes.size() != sizeof value)
    return fail(ErrorKind::kCorrupt, "read a kernel structure", std::string(room),
                "the message has another size than this kernel's");
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

}  // namespace godwit::state
