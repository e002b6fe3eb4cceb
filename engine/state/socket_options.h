// Socket options as data: tables of what getsockopt tells and setsockopt takes back, shared by every socket
// room (tcp adds a table of its own). Source side: on a duplicate of the socket, any thread. Destination: on
// the shell's thread. Only options of the tables are ever set: a message cannot name another.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>

#include "engine/base/result.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {

enum class OptionPhase : uint8_t {
  kEarly = 1,  ///< before bind, connect and the filling of queues
  kLate,       ///< when all else is in place
};

struct OptionSpec {
  int level;
  int name;
  size_t size;  ///< of the value in bytes; 0: as long as the kernel says (a string)
  OptionPhase phase;
  const char* text;  ///< "SO_REUSEADDR"
};

using OptionTables = std::initializer_list<std::span<const OptionSpec>>;

/// SOL_SOCKET: what every family has, as plain values. Buffer sizes, SO_BUF_LOCK and the classic BPF filter
/// need more than that; capture and apply treat them beside the tables.
std::span<const OptionSpec> socket_level_options();
/// IPPROTO_IP and IPPROTO_IPV6, for udp and tcp. Options that a socket's family does not know are skipped.
std::span<const OptionSpec> ip_level_options();

/// Every option of `tables` that the socket knows, and its buffer sizes, buffer locks and classic filter.
/// About 0.2 us an option. Errors: Unsupported for an eBPF filter; the subject names the socket.
Result<wire::SocketOptions> capture_socket_options(int fd, const std::string& subject, OptionTables tables);

/// Sets what differs from the socket's present value, of this phase only. Buffer sizes are early and set with
/// the FORCE variants when allowed; their locks and the filter are late.
Status apply_socket_options(int fd, const std::string& subject, const wire::SocketOptions& options,
                            OptionPhase phase, OptionTables tables);

/// A filter may drop what fills a queue: such a socket gets its late options after that. Others can have all
/// at once, while the source runs.
bool has_packet_filter(const wire::SocketOptions& options);

/// An int option of a captured set; `fallback` when it is not there.
int option_value(const wire::SocketOptions& options, int level, int name, int fallback);
/// getsockopt of an int. Errors as errno says.
Result<int> get_int_option(int fd, const std::string& subject, int level, int name);
Status set_int_option(int fd, const std::string& subject, int level, int name, int value);

}  // namespace godwit::state
