// Unix sockets: pairs with both ends in the process and what is queued in them, listening sockets, bound
// datagram sockets, and datagram sockets connected to a name (such as /dev/log).
#include "engine/state/unix_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/fd_holders.h"
#include "engine/state/socket_options.h"
#include "engine/state/unix_address.h"
#include "engine/state/unix_diag.h"
#include "engine/state/unix_queue.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

bool claims(const OpenFile& file) {
  return file.socket && file.socket->domain == AF_UNIX;
}

bool is_datagram(const OpenFile& file) {
  return file.socket->type == SOCK_DGRAM;
}

bool is_inside(const std::vector<OpenFile>& files, uint64_t inode) {
  return std::any_of(files.begin(), files.end(),
                     [&](const OpenFile& file) { return claims(file) && file.status.st_ino == inode; });
}

/// What the other end means for the move.
enum class Link { kNone, kPair, kNamed, kOutside };

struct Peer {
  Link link = Link::kNone;
  bool inside = false;
  std::string name;  ///< of a kNamed one
};

/// The name that a datagram socket is connected to; empty: the peer has none.
std::string peer_name(int fd) {
  sockaddr_un name{};
  socklen_t length = sizeof name;
  constexpr socklen_t kHead = offsetof(sockaddr_un, sun_path);
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0 || length <= kHead) return {};
  std::string out(name.sun_path, std::min<size_t>(length - kHead, sizeof name.sun_path));
  if (out.size() > 1 && is_path(out) && out.back() == '\0') out.pop_back();
  return out;
}

/// `fd`: a duplicate. A peer outside is not asked for: it may be in another network namespace.
Result<Peer> look_at_peer(const UnixDiag& diag, int fd, const OpenFile& file, const UnixSocketInfo& info,
                          const std::vector<OpenFile>& files) {
  if (!info.peer) return Peer{};
  if (*info.peer == 0) return Peer{Link::kPair, false, ""};
  const bool inside = is_inside(files, *info.peer);
  if (inside) {
    const UnixSocketInfo other = TRY(diag.query(*info.peer));
    if (other.peer && *other.peer == file.status.st_ino) return Peer{Link::kPair, true, ""};
  }
  if (!is_datagram(file)) return Peer{Link::kOutside, inside, ""};
  std::string name = peer_name(fd);
  return name.empty() ? Peer{Link::kOutside, inside, ""} : Peer{Link::kNamed, inside, std::move(name)};
}

// ---- check
// -------------------------------------------------------------------------------------------------------

Finding finding(const OpenFile& file, std::string what, std::string why, std::string remedy, bool fatal) {
  return {std::string(kUnixRoom), file.subject(), std::move(what), std::move(why), std::move(remedy), fatal};
}

Finding outside_finding(const CheckContext& ctx, const OpenFile& file, uint64_t peer) {
  const std::string link = fmt::format("socket:[{}]", peer);
  const auto holders = find_holders(ctx.process.pid(), {link});
  const auto holder = holders.find(link);
  return finding(file, "a unix socket connected to another process",
                 holder == holders.end()
                     ? "its other end stays on this host"
                     : to_text(holder->second) + " has the other end and stays on this host",
                 "close the connection, or use TCP", true);
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  const UnixDiag diag = TRY(UnixDiag::open(ctx.process));
  const auto copy = ctx.process.pidfd().get_fd(file.number());
  const auto info = diag.query(file.status.st_ino);
  if (!copy.ok() || !info.ok()) return {};  // closed meanwhile
  const auto peer = look_at_peer(diag, copy.value().get(), file, info.value(), ctx.files);
  if (!peer.ok()) return {};
  const Link link = peer.value().link;
  if (link == Link::kOutside) findings.push_back(outside_finding(ctx, file, *info.value().peer));
  const bool named = info.value().name && is_path(*info.value().name);
  if (named && info.value().name->front() != '/' && link != Link::kPair)
    findings.push_back(finding(file, "a unix socket with the relative name " + *info.value().name,
                               "the directory it was relative to is not known", "bind it to an absolute path",
                               true));
  if (link == Link::kPair && info.value().name && !is_datagram(file))
    findings.push_back(finding(file, "a unix connection of the process to itself by name",
                               "it goes on as a nameless pair",
                               "nothing, unless the program asks for the name", false));
  if (info.value().state == TCP_LISTEN && info.value().receive_queue != 0)
    findings.push_back(finding(file, "connections not accepted yet",
                               "the freeze waits for an instant without them",
                               "nothing, if the program accepts in time", false));
  return {};
}

// ---- capture
// -----------------------------------------------------------------------------------------------------

/// The name's file on the source, if it still is this socket.
void capture_file(const tracee::Process& process, const UnixSocketInfo& info, wire::UnixSocketState& state) {
  struct stat status {};
  if (!is_path(state.name()) || ::lstat(process.path("root" + state.name()).c_str(), &status) != 0) return;
  const uint32_t device = (major(status.st_dev) << 20) | minor(status.st_dev);
  if (!S_ISSOCK(status.st_mode) || static_cast<uint32_t>(status.st_ino) != info.file_inode ||
      device != info.file_device)
    return;
  state.set_named_file(true);
  state.set_file_mode(status.st_mode & 07777);
  state.set_file_uid(status.st_uid);
  state.set_file_gid(status.st_gid);
}

Status capture_peer(const Peer& peer, const OpenFile& file, const UnixSocketInfo& info,
                    wire::UnixSocketState& state) {
  if (peer.link == Link::kOutside)
    return fail(
        ErrorKind::kUnsupported, "capture a unix connection", file.subject(),
        fmt::format("socket:[{}], its other end, is in another process: close the connection", *info.peer));
  state.set_pair(peer.link == Link::kPair);
  if (state.pair()) state.set_peer(*info.peer);
  state.set_peer_name(peer.name);
  state.set_peer_inside(peer.inside);
  return {};
}

/// An accepted connection shows its listener's name, and may not be bound to it again.
bool has_own_name(const OpenFile& file, const UnixSocketInfo& info, const Peer& peer) {
  return info.name && (is_datagram(file) || peer.link != Link::kPair);
}

Status capture_queue(const Fd& copy, const OpenFile& file, const UnixSocketInfo& info,
                     wire::UnixSocketState& state) {
  if (state.listening()) {
    if (info.receive_queue == 0) return {};
    return fail(ErrorKind::kRetry, "capture a listening unix socket", file.subject(),
                "a connection was not accepted yet; the migration needs an instant without");
  }
  for (std::string& piece : TRY(peek_unix_queue(copy.get(), state.type(), file.subject())))
    state.add_queue(std::move(piece));
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  if (!ctx.unix_diag) ctx.unix_diag = std::make_shared<UnixDiag>(TRY(UnixDiag::open(ctx.process)));
  const UnixDiag& diag = *ctx.unix_diag;
  const UnixSocketInfo info = TRY(diag.query(file.status.st_ino));
  const Fd copy = TRY(duplicate(ctx, file));
  const Peer peer = TRY(look_at_peer(diag, copy.get(), file, info, ctx.files));
  wire::UnixSocketState state;
  state.set_inode(file.status.st_ino);
  state.set_type(file.socket->type);
  TRY(capture_peer(peer, file, info, state));
  state.set_has_name(has_own_name(file, info, peer));
  if (state.has_name()) state.set_name(*info.name);
  state.set_listening(info.state == TCP_LISTEN);
  if (state.listening()) state.set_backlog(info.send_queue);
  state.set_shutdown(info.shutdown);
  *state.mutable_options() =
      TRY(capture_socket_options(copy.get(), file.subject(), {socket_level_options()}));
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(copy.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0) {
    state.set_peer_uid(credentials.uid);
    state.set_peer_gid(credentials.gid);
  }
  capture_file(ctx.process, info, state);
  if (ctx.frozen != nullptr) TRY(capture_queue(copy, file, info, state));
  return state.SerializeAsString();
}

}  // namespace

DescriptorRoom unix_socket_room() {
  return {kUnixRoom,
          claims,
          check,
          capture,
          prepare_unix_socket,
          finish_unix_socket,
          wire_up_unix_socket,
          identify_unix_socket};
}

}  // namespace godwit::state
