#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "engine/state/descriptors.h"
#include "engine/state/socket_options.h"
#include "engine/state/unix_address.h"
#include "engine/state/unix_queue.h"
#include "engine/state/unix_socket.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

using wire::UnixSocketState;

Result<UnixSocketState> parse(std::string_view message) {
  auto state = TRY(parse_message<UnixSocketState>(kUnixRoom, message));
  const int type = state.type();
  if (type != SOCK_STREAM && type != SOCK_DGRAM && type != SOCK_SEQPACKET)
    return fail(ErrorKind::kCorrupt, "make a unix socket", fmt::format("type {}", type),
                "the stream is damaged");
  return state;
}

std::string subject(const UnixSocketState& state) {
  return state.has_name() ? fmt::format("unix socket {}", to_text(state.name()))
                          : fmt::format("unix socket:[{}]", state.inode());
}

/// One end of a pair; and its other end, to send through.
std::string end_name(uint64_t inode) {
  return fmt::format("unix {}", inode);
}
std::string far_end_name(uint64_t inode) {
  return fmt::format("unix {} far end", inode);
}

constexpr int kKeep = -1;  // setresuid(2): leave it

// SO_PEERCRED is who made the pair, so the process makes it, for the instant as the user it was. KERNEL: a
// change of the effective user makes it undumpable.
Result<std::array<int, 2>> make_pair_inside(BuildContext& ctx, const UnixSocketState& state) {
  tracee::Batch batch;
  const bool other_user = state.peer_uid() != 0 || state.peer_gid() != 0;
  if (other_user) {
    batch.call(SYS_setresgid, {kKeep, state.peer_gid(), kKeep}, "setresgid");
    batch.call(SYS_setresuid, {kKeep, state.peer_uid(), kKeep}, "setresuid");
  }
  const auto ends = batch.reserve(2 * sizeof(int));
  batch.call(SYS_socketpair, {AF_UNIX, state.type() | SOCK_CLOEXEC, 0, ends}, "socketpair");
  if (other_user) {
    batch.call(SYS_setresuid, {kKeep, 0, kKeep}, "setresuid");
    batch.call(SYS_setresgid, {kKeep, 0, kKeep}, "setresgid");
    batch.call(SYS_prctl, {PR_SET_DUMPABLE, 1}, "prctl(PR_SET_DUMPABLE)");
  }
  TRY(ctx.run(batch));
  return batch.value<std::array<int, 2>>(ends);
}

Status keep_copy(BuildContext& ctx, const std::string& name, int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return fail_errno("fcntl(F_DUPFD)", name);
  return keep_anchor(ctx, name, copy);
}

Status make_pair(BuildContext& ctx, const UnixSocketState& state) {
  if (anchor(ctx, end_name(state.inode()))) return {};
  const auto ends = TRY(make_pair_inside(ctx, state));
  TRY(keep_copy(ctx, end_name(state.inode()), ends[0]));
  TRY(keep_copy(ctx, far_end_name(state.inode()), ends[1]));
  if (state.peer() != 0 && state.peer() != state.inode()) {
    TRY(keep_copy(ctx, end_name(state.peer()), ends[1]));
    TRY(keep_copy(ctx, far_end_name(state.peer()), ends[0]));
  }
  ::close(ends[0]);
  ::close(ends[1]);
  return {};
}

Status bind_name(int fd, const UnixSocketState& state) {
  sockaddr_un address{};
  const socklen_t length = TRY(fill_unix_address(state.name(), subject(state), address));
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0) return {};
  Error error = fail_errno("bind", subject(state));
  if (error.err == EADDRINUSE) error.remedy = "another program on this host has this name: stop it";
  return error;
}

Status connect_name(int fd, const UnixSocketState& state) {
  sockaddr_un address{};
  const socklen_t length = TRY(fill_unix_address(state.peer_name(), subject(state), address));
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0) return {};
  return fail_errno("connect a unix socket to " + to_text(state.peer_name()), subject(state));
}

// Run by the process itself, for SO_PEERCRED of those who connect is who called listen.
Status start_listening(BuildContext& ctx, int fd, const UnixSocketState& state) {
  tracee::Batch batch;
  batch.call(SYS_listen, {fd, state.backlog()}, "listen on " + subject(state));
  return ctx.run(batch);
}

std::vector<std::string_view> pieces(const UnixSocketState& state) {
  return {state.queue().begin(), state.queue().end()};
}

/// Datagrams of senders without a name, to a bound socket.
Status fill_by_name(const UnixSocketState& state) {
  if (state.queue().empty()) return {};
  const int sender = ::socket(AF_UNIX, state.type() | SOCK_CLOEXEC, 0);
  if (sender < 0) return fail_errno("socket", subject(state));
  Status filled = fill_unix_queue(sender, state.name(), pieces(state), nullptr, subject(state));
  ::close(sender);
  return filled;
}

Status fill_pair(BuildContext& ctx, const UnixSocketState& state) {
  const auto sender = anchor(ctx, far_end_name(state.inode()));
  if (!sender)
    return fail(ErrorKind::kBug, "fill the queue of a unix socket", subject(state), "its pair is not there");
  const bool passes_credentials = option_value(state.options(), SOL_SOCKET, SO_PASSCRED, 0) != 0;
  const Credentials process{ctx.shell.pid(), state.peer_uid(), state.peer_gid()};
  return fill_unix_queue(*sender, "", pieces(state), passes_credentials ? &process : nullptr, subject(state));
}

// ---- paths
// -------------------------------------------------------------------------------------------------------

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// What could go wrong at the resume is looked at before.
Status check_path(const UnixSocketState& state) {
  const std::string& path = state.name();
  if (path.front() != '/')
    return fail(ErrorKind::kUnsupported, "bind a unix socket", subject(state), "its name is a relative path");
  if (::access(directory_of(path).c_str(), W_OK | X_OK) != 0)
    return fail_errno("bind a unix socket in " + directory_of(path), subject(state));
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return {};
  if (S_ISSOCK(status.st_mode) && state.named_file()) return {};
  return fail(ErrorKind::kSystem, "bind a unix socket", subject(state),
              "something else has this name on this host: move it away");
}

/// Once COMMIT is here the name is ours; where both hosts see one file system the file there is the source's.
Status take_path(int fd, const UnixSocketState& state) {
  const std::string& path = state.name();
  // Again: it may have come since, and only a socket may be taken away.
  TRY(check_path(state));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", subject(state));
  TRY(bind_name(fd, state));
  if (!state.named_file()) {
    if (::unlink(path.c_str()) != 0) return fail_errno("unlink", subject(state));
    return {};
  }
  if (::chmod(path.c_str(), state.file_mode()) != 0) return fail_errno("chmod", subject(state));
  if (::chown(path.c_str(), state.file_uid(), state.file_gid()) != 0)
    return fail_errno("chown", subject(state));
  return {};
}

/// After the bind: what a name makes possible.
Status open_for_business(BuildContext& ctx, int fd, const UnixSocketState& state) {
  if (state.listening()) return start_listening(ctx, fd, state);
  return state.pair() ? Status() : fill_by_name(state);
}

Status settle_name(BuildContext& ctx, int fd, const UnixSocketState& state) {
  if (!is_path(state.name())) {
    TRY(bind_name(fd, state));
    return open_for_business(ctx, fd, state);
  }
  TRY(check_path(state));
  ctx.at_resume.push_back([&ctx, fd, state]() -> Status {
    TRY(take_path(fd, state));
    return open_for_business(ctx, fd, state);
  });
  return {};
}

}  // namespace

std::string identify_unix_socket(std::string_view message) {
  const auto state = parse(message);
  if (!state.ok()) return "damaged";
  const auto& s = state.value();
  return fmt::format("{}:{}:{}:{}", s.inode(), s.pair() ? 1 : 0, s.peer(), s.options().SerializeAsString());
}

namespace {

Result<int> make_socket(BuildContext& ctx, const UnixSocketState& state) {
  if (state.pair()) {
    TRY(make_pair(ctx, state));
    return take_anchor(ctx, end_name(state.inode()), subject(state));
  }
  const int fd = ::socket(AF_UNIX, state.type() | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail_errno("socket", subject(state));
  return fd;
}

Status apply_options(int fd, const UnixSocketState& state, OptionPhase phase) {
  return apply_socket_options(fd, subject(state), state.options(), phase, {socket_level_options()});
}

}  // namespace

Result<int> prepare_unix_socket(BuildContext& ctx, std::string_view message) {
  const auto state = TRY(parse(message));
  const int fd = TRY(make_socket(ctx, state));
  Status applied = apply_options(fd, state, OptionPhase::kEarly);
  if (applied.ok() && !has_packet_filter(state.options()))
    applied = apply_options(fd, state, OptionPhase::kLate);
  if (applied.ok()) return fd;
  ::close(fd);
  return applied.take_error();
}

Status finish_unix_socket(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse(message));
  if (state.pair()) TRY(fill_pair(ctx, state));
  if (state.has_name()) TRY(settle_name(ctx, fd, state));
  return {};
}

Status wire_up_unix_socket(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse(message));
  if (!state.peer_name().empty() && state.peer_inside()) {
    // ORDER: after every name of this process is bound.
    ctx.at_resume.push_back([fd, state]() -> Status { return connect_name(fd, state); });
  } else if (!state.peer_name().empty()) {
    TRY(connect_name(fd, state));
  }
  // ORDER: a shutdown ends the filling of the other end's queue, too. A closed other end says the same by
  // itself.
  const int how = static_cast<int>(state.shutdown() & 3) - 1;
  const bool other_is_closed = state.pair() && state.peer() == 0;
  if (how >= 0 && !other_is_closed && ::shutdown(fd, how) != 0) return fail_errno("shutdown", subject(state));
  return has_packet_filter(state.options()) ? apply_options(fd, state, OptionPhase::kLate) : Status();
}

}  // namespace godwit::state
