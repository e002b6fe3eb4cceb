// What the kernel tells of a unix socket and /proc does not: its peer, name, backlog, shutdown
// (sock_diag(7)). Source side, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/base/fd.h"
#include "engine/base/result.h"
#include "engine/tracee/process.h"

namespace godwit::state {

struct UnixSocketInfo {
  int state = 0;                    ///< TCP_LISTEN, TCP_ESTABLISHED, TCP_CLOSE
  std::optional<uint64_t> peer;     ///< inode of the other end, 0 if that is closed; nothing: never had one
  std::optional<std::string> name;  ///< sun_path; an abstract one begins with a zero
  uint32_t file_inode = 0;          ///< of the file that a path was bound to, cut to 32 bits
  uint32_t file_device = 0;         ///< as the kernel counts: major << 20 | minor
  uint32_t receive_queue = 0;       ///< bytes; of a listening socket: connections not accepted yet
  uint32_t send_queue = 0;          ///< bytes; of a listening socket: the backlog
  uint8_t shutdown = 0;             ///< 1: receiving, 2: sending
};

class UnixDiag {
 public:
  /// Asks in the network namespace of the process. Errors: Denied, System.
  static Result<UnixDiag> open(const tracee::Process& process);
  /// Errors: Retry when there is no such socket (any more).
  [[nodiscard]] Result<UnixSocketInfo> query(uint64_t inode) const;

 private:
  explicit UnixDiag(Fd socket) : socket_(std::move(socket)) {}
  Fd socket_;
};

}  // namespace godwit::state
