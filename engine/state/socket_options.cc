#include "engine/state/socket_options.h"

#include <fmt/format.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cstring>
#include <vector>

// linux/in.h, asm-generic/socket.h of Linux 6.18: newer than Debian 12's headers.
#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

namespace godwit::state {
namespace {

constexpr size_t kInt = sizeof(int);
constexpr OptionPhase kEarly = OptionPhase::kEarly;
constexpr OptionPhase kLate = OptionPhase::kLate;

#define OPT(level, name, size, phase) \
  OptionSpec {                        \
    level, name, size, phase, #name   \
  }

constexpr std::array kSocketLevel = {
    OPT(SOL_SOCKET, SO_REUSEADDR, kInt, kEarly),
    OPT(SOL_SOCKET, SO_REUSEPORT, kInt, kEarly),
    OPT(SOL_SOCKET, SO_BINDTODEVICE, 0, kEarly),
    OPT(SOL_SOCKET, SO_MARK, kInt, kEarly),
    OPT(SOL_SOCKET, SO_BROADCAST, kInt, kEarly),
    OPT(SOL_SOCKET, SO_DONTROUTE, kInt, kEarly),
    OPT(SOL_SOCKET, SO_PRIORITY, kInt, kLate),  // ORDER: IP_TOS changes it
    OPT(SOL_SOCKET, SO_KEEPALIVE, kInt, kLate),
    OPT(SOL_SOCKET, SO_OOBINLINE, kInt, kEarly),
    OPT(SOL_SOCKET, SO_LINGER, sizeof(linger), kLate),
    OPT(SOL_SOCKET, SO_RCVLOWAT, kInt, kLate),
    OPT(SOL_SOCKET, SO_RCVTIMEO, sizeof(timeval), kLate),
    OPT(SOL_SOCKET, SO_SNDTIMEO, sizeof(timeval), kLate),
    OPT(SOL_SOCKET, SO_PASSCRED, kInt, kEarly),
    OPT(SOL_SOCKET, SO_PASSSEC, kInt, kEarly),
    OPT(SOL_SOCKET, SO_PASSPIDFD, kInt, kEarly),
    OPT(SOL_SOCKET, SO_PASSRIGHTS, kInt, kLate),
    OPT(SOL_SOCKET, SO_TIMESTAMP, kInt, kEarly),
    OPT(SOL_SOCKET, SO_TIMESTAMPNS, kInt, kEarly),
    OPT(SOL_SOCKET, SO_TIMESTAMPING, kInt, kEarly),
    OPT(SOL_SOCKET, SO_NO_CHECK, kInt, kEarly),
    OPT(SOL_SOCKET, SO_RXQ_OVFL, kInt, kLate),
    OPT(SOL_SOCKET, SO_PEEK_OFF, kInt, kLate),
    OPT(SOL_SOCKET, SO_SELECT_ERR_QUEUE, kInt, kLate),
    OPT(SOL_SOCKET, SO_BUSY_POLL, kInt, kLate),
    OPT(SOL_SOCKET, SO_MAX_PACING_RATE, kInt, kLate),
    OPT(SOL_SOCKET, SO_ZEROCOPY, kInt, kEarly),
    OPT(SOL_SOCKET, SO_TXREHASH, kInt, kEarly),
};

constexpr std::array kIpLevel = {
    OPT(IPPROTO_IP, IP_TOS, kInt, kEarly),
    OPT(IPPROTO_IP, IP_TTL, kInt, kEarly),
    OPT(IPPROTO_IP, IP_MTU_DISCOVER, kInt, kEarly),
    OPT(IPPROTO_IP, IP_RECVERR, kInt, kLate),
    OPT(IPPROTO_IP, IP_PKTINFO, kInt, kEarly),
    OPT(IPPROTO_IP, IP_RECVTTL, kInt, kEarly),
    OPT(IPPROTO_IP, IP_RECVTOS, kInt, kEarly),
    OPT(IPPROTO_IP, IP_RECVORIGDSTADDR, kInt, kEarly),
    OPT(IPPROTO_IP, IP_FREEBIND, kInt, kLate),
    OPT(IPPROTO_IP, IP_TRANSPARENT, kInt, kLate),
    OPT(IPPROTO_IP, IP_MINTTL, kInt, kLate),
    OPT(IPPROTO_IP, IP_MULTICAST_TTL, kInt, kEarly),
    OPT(IPPROTO_IP, IP_MULTICAST_LOOP, kInt, kEarly),
    OPT(IPPROTO_IP, IP_MULTICAST_ALL, kInt, kEarly),
    OPT(IPPROTO_IP, IP_UNICAST_IF, kInt, kEarly),
    OPT(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, kInt, kLate),
    OPT(IPPROTO_IP, IP_LOCAL_PORT_RANGE, kInt, kLate),
    OPT(IPPROTO_IPV6, IPV6_V6ONLY, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_UNICAST_HOPS, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_MULTICAST_HOPS, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_MULTICAST_LOOP, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_TCLASS, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_MTU_DISCOVER, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_RECVERR, kInt, kLate),
    OPT(IPPROTO_IPV6, IPV6_RECVPKTINFO, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_RECVTCLASS, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_DONTFRAG, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, kInt, kEarly),
    OPT(IPPROTO_IPV6, IPV6_FREEBIND, kInt, kLate),
    OPT(IPPROTO_IPV6, IPV6_TRANSPARENT, kInt, kLate),
    OPT(IPPROTO_IPV6, IPV6_UNICAST_IF, kInt, kEarly),
};
#undef OPT

constexpr int kBufferLocks = 1 | 2;  // linux/socket.h: SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK
/// Longest value that is not a filter: interface names have 16 bytes.
constexpr size_t kLongestValue = 64;

Result<std::string> read_option(int fd, int level, int name, size_t size) {
  std::string value(size != 0 ? size : kLongestValue, '\0');
  auto length = static_cast<socklen_t>(value.size());
  if (::getsockopt(fd, level, name, value.data(), &length) != 0)
    return fail_errno(fmt::format("getsockopt({}, {})", level, name), fmt::format("fd {}", fd));
  value.resize(length);
  return value;
}

void add(wire::SocketOptions& out, int level, int name, std::string value) {
  auto* option = out.add_options();
  option->set_level(level);
  option->set_name(name);
  option->set_value(std::move(value));
}

const wire::SocketOption* find(const wire::SocketOptions& options, int level, int name) {
  for (const auto& option : options.options())
    if (option.level() == level && option.name() == name) return &option;
  return nullptr;
}

Status set_option(int fd, const std::string& subject, const OptionSpec& spec, const std::string& value) {
  if (spec.size != 0 && value.size() != spec.size)
    return fail(ErrorKind::kCorrupt, fmt::format("restore option {}", spec.text), subject,
                "the value has the wrong size: the stream is damaged, or from an incompatible version");
  const auto now = read_option(fd, spec.level, spec.name, spec.size);
  if (now.ok() && now.value() == value) return {};
  if (::setsockopt(fd, spec.level, spec.name, value.data(), static_cast<socklen_t>(value.size())) != 0)
    return fail_errno(fmt::format("setsockopt({})", spec.text), subject);
  return {};
}

// KERNEL: SO_GET_FILTER counts instructions, not bytes. ENOENT or a count of 0: none; EACCES: an eBPF
// program.
Status capture_filter(int fd, const std::string& subject, wire::SocketOptions& out) {
  socklen_t count = 0;
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) {
    if (errno == EACCES)
      return fail(ErrorKind::kUnsupported, "read the packet filter of a socket", subject,
                  "it is an eBPF program, which cannot be carried over: detach it (SO_DETACH_FILTER)");
    return {};
  }
  if (count == 0) return {};
  std::vector<sock_filter> program(count);
  if (::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program.data(), &count) != 0)
    return fail_errno("getsockopt(SO_GET_FILTER)", subject);
  add(out, SOL_SOCKET, SO_ATTACH_FILTER,
      std::string(reinterpret_cast<const char*>(program.data()), count * sizeof(sock_filter)));
  return {};
}

Status apply_filter(int fd, const std::string& subject, const wire::SocketOptions& options) {
  const auto* option = find(options, SOL_SOCKET, SO_ATTACH_FILTER);
  if (option == nullptr) {
    // It may have got one from an earlier description; ENOENT when not.
    const int nothing = 0;
    (void)::setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &nothing, sizeof nothing);
    return {};
  }
  const size_t count = option->value().size() / sizeof(sock_filter);
  if (count == 0 || count > BPF_MAXINSNS || option->value().size() % sizeof(sock_filter) != 0)
    return fail(ErrorKind::kCorrupt, "restore the packet filter of a socket", subject,
                "its size makes no sense: the stream is damaged");
  std::vector<sock_filter> code(count);
  std::memcpy(code.data(), option->value().data(), option->value().size());
  const sock_fprog program{static_cast<unsigned short>(count), code.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
    return fail_errno("setsockopt(SO_ATTACH_FILTER)", subject);
  return {};
}

// KERNEL: the kernel doubles what it is given, and cuts it to net.core.*mem_max unless FORCE (CAP_NET_ADMIN).
Status apply_buffer(int fd, const std::string& subject, const wire::SocketOptions& options, int plain,
                    int force) {
  const int wanted = option_value(options, SOL_SOCKET, plain, 0);
  if (wanted <= 0) return {};
  if (TRY(get_int_option(fd, subject, SOL_SOCKET, plain)) == wanted) return {};
  if (set_int_option(fd, subject, SOL_SOCKET, force, wanted / 2).ok()) return {};
  return set_int_option(fd, subject, SOL_SOCKET, plain, wanted / 2);
}

Status apply_early_extras(int fd, const std::string& subject, const wire::SocketOptions& options) {
  TRY(apply_buffer(fd, subject, options, SO_SNDBUF, SO_SNDBUFFORCE));
  return apply_buffer(fd, subject, options, SO_RCVBUF, SO_RCVBUFFORCE);
}

Status apply_late_extras(int fd, const std::string& subject, const wire::SocketOptions& options) {
  // The queues may have needed larger buffers for a while, and setting a size locks it.
  TRY(apply_early_extras(fd, subject, options));
  if (const int locks = option_value(options, SOL_SOCKET, SO_BUF_LOCK, -1); locks >= 0)
    TRY(set_int_option(fd, subject, SOL_SOCKET, SO_BUF_LOCK, locks & kBufferLocks));
  return apply_filter(fd, subject, options);
}

}  // namespace

std::span<const OptionSpec> socket_level_options() {
  return kSocketLevel;
}
std::span<const OptionSpec> ip_level_options() {
  return kIpLevel;
}

Result<wire::SocketOptions> capture_socket_options(int fd, const std::string& subject, OptionTables tables) {
  wire::SocketOptions out;
  for (const auto& table : tables)
    for (const OptionSpec& spec : table) {
      auto value = read_option(fd, spec.level, spec.name, spec.size);
      // What this family or kernel does not know is not there to be lost.
      if (value.ok() && (spec.size == 0 || value.value().size() == spec.size))
        add(out, spec.level, spec.name, value.take());
    }
  for (const int name : {SO_SNDBUF, SO_RCVBUF, SO_BUF_LOCK})
    if (auto value = read_option(fd, SOL_SOCKET, name, kInt); value.ok())
      add(out, SOL_SOCKET, name, value.take());
  TRY(capture_filter(fd, subject, out));
  return out;
}

Status apply_socket_options(int fd, const std::string& subject, const wire::SocketOptions& options,
                            OptionPhase phase, OptionTables tables) {
  if (phase == kEarly) TRY(apply_early_extras(fd, subject, options));
  for (const auto& table : tables)
    for (const OptionSpec& spec : table) {
      if (spec.phase != phase) continue;
      if (const auto* option = find(options, spec.level, spec.name); option != nullptr)
        TRY(set_option(fd, subject, spec, option->value()));
    }
  if (phase == kLate) TRY(apply_late_extras(fd, subject, options));
  return {};
}

bool has_packet_filter(const wire::SocketOptions& options) {
  return find(options, SOL_SOCKET, SO_ATTACH_FILTER) != nullptr;
}

int option_value(const wire::SocketOptions& options, int level, int name, int fallback) {
  const auto* option = find(options, level, name);
  if (option == nullptr || option->value().size() != sizeof fallback) return fallback;
  std::memcpy(&fallback, option->value().data(), sizeof fallback);
  return fallback;
}

Result<int> get_int_option(int fd, const std::string& subject, int level, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  if (::getsockopt(fd, level, name, &value, &length) != 0)
    return fail_errno(fmt::format("getsockopt({}, {})", level, name), subject);
  return value;
}

Status set_int_option(int fd, const std::string& subject, int level, int name, int value) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0)
    return fail_errno(fmt::format("setsockopt({}, {}, {})", level, name, value), subject);
  return {};
}

}  // namespace godwit::state
