// Names of unix sockets: the bytes of sun_path, from the wire or from sock_diag. Pure.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace godwit::state {

inline bool is_path(std::string_view name) {
  return !name.empty() && name.front() != '\0';
}

/// "/run/x.sock", or "@x" for an abstract name.
inline std::string to_text(std::string_view name) {
  if (is_path(name)) return std::string(name);
  return name.empty() ? "" : "@" + std::string(name.substr(1));
}

/// Returns the length of the address. Errors: Corrupt when the name does not fit.
inline Result<socklen_t> fill_unix_address(std::string_view name, const std::string& subject,
                                           sockaddr_un& out) {
  if (name.empty() || name.size() > sizeof out.sun_path)
    return fail(ErrorKind::kCorrupt, "name a unix socket", subject,
                "the name does not fit: the stream is damaged");
  out = {};
  out.sun_family = AF_UNIX;
  std::memcpy(out.sun_path, name.data(), name.size());
  const size_t zero = is_path(name) && name.size() < sizeof out.sun_path ? 1 : 0;
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + zero);
}

}  // namespace godwit::state
