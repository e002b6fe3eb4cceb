// Names of hosts, addresses and the options every connection gets. Blocking, any thread.
#pragma once

#include <sys/socket.h>

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::transport {

struct HostPort {
  std::string host;  ///< empty for every address of this host
  uint16_t port = 0;
};

/// "10.0.0.1:7001", "[::1]:7001", "name:7001", ":7001". Errors: Usage.
Result<HostPort> parse_host_port(std::string_view text);

/// One end of a connection.
class Endpoint {
 public:
  Endpoint() = default;
  Endpoint(const sockaddr* address, socklen_t size);
  static Result<Endpoint> local_of(int socket);  ///< errors: System
  static Result<Endpoint> peer_of(int socket);   ///< errors: PeerGone, System

  [[nodiscard]] const sockaddr* address() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  [[nodiscard]] socklen_t size() const { return size_; }
  [[nodiscard]] uint16_t port() const;
  /// "10.0.0.1:7001", "[::1]:7001", "unix socket".
  [[nodiscard]] std::string text() const;
  /// Bytes to it do not leave this host: 127/8, ::1, the same mapped into IPv6, a Unix socket.
  [[nodiscard]] bool is_loopback() const;

 private:
  sockaddr_storage storage_{};
  socklen_t size_ = 0;
};

/// Every address of a numeric or named host, in the order to try. Asks the system's resolver, which has its
/// own time limit. `passive` is for listening. Errors: Usage (no such name), Retry (resolver unreachable),
/// System.
Result<std::vector<Endpoint>> resolve(const HostPort& where, bool passive);

/// A TCP connection within `timeout`, over all addresses of the name. Errors: PeerGone (refused,
/// unreachable), Timeout, and as resolve().
Result<Fd> connect_socket(const HostPort& where, Nanos timeout);

/// fail_errno() for a socket: every way to lose a peer (unreachable, reset, no answer) is PeerGone.
Error socket_error(std::string operation, std::string subject, int err = errno);

/// Waits for `events` on `socket`, or for `cancel` to become readable when it is a descriptor. Errors:
/// Timeout, Cancelled. A negative timeout never ends.
Status wait_for(int socket, short events, Nanos timeout, int cancel, const std::string& operation,
                const std::string& subject);

}  // namespace godwit::transport
