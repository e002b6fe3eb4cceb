#include "engine/transport/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "engine/base/files.h"

namespace godwit::transport {

namespace {

std::string name_of(const HostPort& where) {
  const bool v6 = where.host.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", where.host, where.port) : fmt::format("{}:{}", where.host, where.port);
}

Error resolver_error(int code, const HostPort& where) {
  if (code == EAI_SYSTEM) return fail_errno("resolving the name", name_of(where));
  const ErrorKind kind = code == EAI_AGAIN ? ErrorKind::kRetry : ErrorKind::kUsage;
  return fail(kind, fmt::format("resolving the name: {}", ::gai_strerror(code)), name_of(where),
              "give an address or a name that this host can resolve");
}

/// Starts the connection and waits for its end. Errors: PeerGone, Timeout, System.
Result<Fd> connect_one(const Endpoint& to, Nanos timeout) {
  Fd fd(::socket(to.address()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return socket_error("socket", to.text());
  if (::connect(fd.get(), to.address(), to.size()) != 0) {
    if (errno != EINPROGRESS) return socket_error("connect", to.text());
    TRY(wait_for(fd.get(), POLLOUT, timeout, -1, "connect", to.text()));
    int err = 0;
    socklen_t size = sizeof err;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &size) != 0)
      return fail_errno("getsockopt", to.text());
    if (err != 0) return socket_error("connect", to.text(), err);
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) != 0)
    return fail_errno("fcntl", to.text());
  return fd;
}

template <typename Call>
Result<Endpoint> name_socket(int socket, Call call, const char* operation) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  if (call(socket, address, &size) != 0) return fail_errno(operation, fmt::format("fd {}", socket));
  return Endpoint(address, size);
}

}  // namespace

Result<HostPort> parse_host_port(std::string_view text) {
  const auto wrong = [&] {
    return fail(ErrorKind::kUsage, "reading an address", std::string(text), "write HOST:PORT or [IPV6]:PORT");
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong();
  std::string_view host = text.substr(0, colon);
  const auto port = parse_number(text.substr(colon + 1));
  if (!port || *port > std::numeric_limits<uint16_t>::max()) return wrong();
  if (host.starts_with('[')) {
    if (!host.ends_with(']') || host.size() < 3) return wrong();
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return wrong();
  }
  return HostPort{std::string(host), static_cast<uint16_t>(*port)};
}

Endpoint::Endpoint(const sockaddr* address, socklen_t size)
    : size_(std::min<socklen_t>(size, sizeof storage_)) {
  std::memcpy(&storage_, address, size_);
}

Result<Endpoint> Endpoint::local_of(int socket) {
  return name_socket(socket, ::getsockname, "getsockname");
}
Result<Endpoint> Endpoint::peer_of(int socket) {
  return name_socket(socket, ::getpeername, "getpeername");
}

uint16_t Endpoint::port() const {
  if (storage_.ss_family == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
  if (storage_.ss_family == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port);
  return 0;
}

std::string Endpoint::text() const {
  char host[NI_MAXHOST];
  if (storage_.ss_family == AF_UNIX) return "unix socket";
  if (::getnameinfo(address(), size_, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0)
    return "unknown address";
  return name_of({host, port()});
}

bool Endpoint::is_loopback() const {
  if (storage_.ss_family == AF_UNIX) return true;
  if (storage_.ss_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr) >> 24 == 127;
  if (storage_.ss_family != AF_INET6) return false;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

Result<std::vector<Endpoint>> resolve(const HostPort& where, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const std::string port = std::to_string(where.port);
  const int code =
      ::getaddrinfo(where.host.empty() ? nullptr : where.host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) return resolver_error(code, where);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  std::vector<Endpoint> endpoints;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next)
    endpoints.emplace_back(a->ai_addr, a->ai_addrlen);
  return endpoints;
}

Status wait_for(int socket, short events, Nanos timeout, int cancel, const std::string& operation,
                const std::string& subject) {
  const Nanos deadline = monotonic_now() + timeout;
  while (true) {
    pollfd fds[2] = {{socket, events, 0}, {cancel, POLLIN, 0}};  // poll ignores a negative descriptor
    const timespec left = to_timespec(std::max(Nanos(0), deadline - monotonic_now()));
    const int n = ::ppoll(fds, 2, timeout < Nanos(0) ? nullptr : &left, nullptr);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(operation + " (poll)", subject);
    if (fds[1].revents != 0) return fail(ErrorKind::kCancelled, operation, subject);
    if (n == 0)
      return fail(ErrorKind::kTimeout, operation, subject, "is the other engine there and reachable?");
    return {};
  }
}

Error socket_error(std::string operation, std::string subject, int err) {
  Error error = fail_errno(std::move(operation), std::move(subject), err);
  switch (err) {
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case ECONNABORTED:
      error.kind = ErrorKind::kPeerGone;
      break;
    default:
      break;
  }
  if (error.kind == ErrorKind::kPeerGone) error.remedy = "is the other engine running, and the network up?";
  return error;
}

Result<Fd> connect_socket(const HostPort& where, Nanos timeout) {
  const std::vector<Endpoint> endpoints = TRY(resolve(where, false));
  const Nanos deadline = monotonic_now() + timeout;
  Error first = fail(ErrorKind::kUsage, "resolving the name", name_of(where), "the name has no address");
  for (size_t i = 0; i < endpoints.size(); ++i) {
    // An address that swallows everything leaves the others their share of the time.
    const Nanos left = std::max(Nanos(0), deadline - monotonic_now());
    Result<Fd> made = connect_one(endpoints[i], left / static_cast<int64_t>(endpoints.size() - i));
    if (made.ok()) return made;
    if (i == 0) first = made.take_error();
  }
  return first;
}

}  // namespace godwit::transport
