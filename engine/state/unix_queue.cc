#include "engine/state/unix_queue.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <memory>

#include "engine/base/units.h"
#include "engine/state/socket_options.h"
#include "engine/state/unix_address.h"

namespace godwit::state {
namespace {

constexpr size_t kLargestDatagram = 1_MiB;
constexpr size_t kMostPieces = 1 << 20;
constexpr size_t kControlBytes = 2048;  // SCM_MAX_FD is 253 descriptors

struct Peeked {
  std::string data;
  bool empty_queue = false;
};

/// Descriptors that came with a peeked message are duplicates: closed at once.
bool close_rights(msghdr& message) {
  bool any = false;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    any = true;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      ::close(fd);
    }
  }
  return any;
}

class Peeker {
 public:
  Peeker(int fd, size_t room, const std::string& subject)
      : fd_(fd), room_(room), buffer_(new char[room]), subject_(subject) {}

  Result<Peeked> peek() {
    sockaddr_un sender{};
    alignas(cmsghdr) char control[kControlBytes];
    iovec part{buffer_.get(), room_};
    msghdr message{&sender, sizeof sender, &part, 1, control, sizeof control, 0};
    const ssize_t got = ::recvmsg(fd_, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EAGAIN) return Peeked{"", true};
    if (got < 0) return fail_errno("recvmsg(MSG_PEEK)", subject_);
    if (close_rights(message) || (message.msg_flags & MSG_CTRUNC) != 0)
      return fail(ErrorKind::kRetry, "read the queue of a unix socket", subject_,
                  "descriptors are under way in it; the migration needs an instant without");
    if ((message.msg_flags & MSG_TRUNC) != 0)
      return fail(ErrorKind::kUnsupported, "read the queue of a unix socket", subject_,
                  fmt::format("a datagram is larger than {} bytes", room_));
    if (message.msg_namelen > offsetof(sockaddr_un, sun_path) && sender.sun_family == AF_UNIX)
      return fail(ErrorKind::kRetry, "read the queue of a unix socket", subject_,
                  "a datagram of a sender with a name waits; the migration needs an instant without");
    return Peeked{std::string(buffer_.get(), static_cast<size_t>(got)), false};
  }

 private:
  int fd_;
  size_t room_;
  std::unique_ptr<char[]> buffer_;  // not cleared: only what is used costs
  const std::string& subject_;
};

/// `bytes`: how many wait, for kinds that tell; a zero-length message at the very end is an end of file, too.
Result<std::vector<std::string>> peek_all(Peeker& peeker, int type, size_t bytes,
                                          const std::string& subject) {
  std::vector<std::string> out;
  for (size_t left = bytes; type == SOCK_DGRAM || left > 0;) {
    Peeked piece = TRY(peeker.peek());
    if (piece.empty_queue) break;
    if (out.size() == kMostPieces || (type == SOCK_STREAM && piece.data.empty()))
      return fail(ErrorKind::kRetry, "read the queue of a unix socket", subject, "it changes, or has no end");
    left -= std::min(left, piece.data.size());
    out.push_back(std::move(piece.data));
  }
  return out;
}

/// Restores an int option at the end of its life.
class OptionGuard {
 public:
  OptionGuard(int fd, int name, int set_back_to) : fd_(fd), name_(name), value_(set_back_to) {}
  OptionGuard(const OptionGuard&) = delete;
  OptionGuard& operator=(const OptionGuard&) = delete;
  ~OptionGuard() { ::setsockopt(fd_, SOL_SOCKET, name_, &value_, sizeof value_); }

 private:
  int fd_;
  int name_;
  int value_;
};

Status send_one(int sender, std::string_view to, std::string_view data, const Credentials* credentials,
                const std::string& subject) {
  sockaddr_un address{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
  iovec part{const_cast<char*>(data.data()), data.size()};
  msghdr message{nullptr, 0, &part, 1, nullptr, 0, 0};
  if (!to.empty()) {
    message.msg_namelen = TRY(fill_unix_address(to, subject, address));
    message.msg_name = &address;
  }
  if (credentials != nullptr) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_CREDENTIALS;
    c->cmsg_len = CMSG_LEN(sizeof(ucred));
    const ucred who{credentials->pid, credentials->uid, credentials->gid};
    std::memcpy(CMSG_DATA(c), &who, sizeof who);
  }
  const ssize_t sent = ::sendmsg(sender, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent == static_cast<ssize_t>(data.size())) return {};
  return fail_errno("fill the queue of a unix socket", subject, sent < 0 ? errno : ENOBUFS);
}

}  // namespace

Result<std::vector<std::string>> peek_unix_queue(int fd, int type, const std::string& subject) {
  pollfd state{fd, POLLIN, 0};
  if (::poll(&state, 1, 0) < 0) return fail_errno("poll", subject);
  if ((state.revents & POLLIN) == 0) return std::vector<std::string>();
  // KERNEL: receiving from a datagram socket would take the error away; a stream gives its data first.
  if (type != SOCK_STREAM && (state.revents & POLLERR) != 0)
    return fail(ErrorKind::kRetry, "read the queue of a unix socket", subject,
                "an error waits to be read first");
  int waiting = 0;
  if (type != SOCK_DGRAM && ::ioctl(fd, FIONREAD, &waiting) != 0)
    return fail_errno("ioctl(FIONREAD)", subject);
  if (type != SOCK_DGRAM && waiting == 0) return std::vector<std::string>();  // the end of a stream
  const auto bytes = static_cast<size_t>(waiting);
  Peeker peeker(fd, type == SOCK_STREAM ? bytes : kLargestDatagram, subject);
  const int offset = TRY(get_int_option(fd, subject, SOL_SOCKET, SO_PEEK_OFF));
  if (type == SOCK_STREAM && offset < 0) {
    // Nearly always it is one piece: then the socket is not even changed for an instant.
    Peeked all = TRY(peeker.peek());
    if (all.data.size() == bytes) return std::vector<std::string>{std::move(all.data)};
  }
  const OptionGuard put_back(fd, SO_PEEK_OFF, offset);
  TRY(set_int_option(fd, subject, SOL_SOCKET, SO_PEEK_OFF, 0));
  return peek_all(peeker, type, bytes, subject);
}

Status fill_unix_queue(int sender, std::string_view to, const std::vector<std::string_view>& pieces,
                       const Credentials* credentials, const std::string& subject) {
  if (pieces.empty()) return {};
  size_t bytes = 0;
  for (const std::string_view piece : pieces) bytes += piece.size() + kPageSize;
  const int size = TRY(get_int_option(sender, subject, SOL_SOCKET, SO_SNDBUF));
  const int locks = TRY(get_int_option(sender, subject, SOL_SOCKET, SO_BUF_LOCK));
  const OptionGuard unlock(sender, SO_BUF_LOCK, locks);
  const OptionGuard shrink(sender, SO_SNDBUFFORCE, size / 2);
  const auto wanted = static_cast<int>(std::min<size_t>(bytes * 2 + static_cast<size_t>(size), INT_MAX / 2));
  TRY(set_int_option(sender, subject, SOL_SOCKET, SO_SNDBUFFORCE, wanted));
  for (const std::string_view piece : pieces) TRY(send_one(sender, to, piece, credentials, subject));
  return {};
}

}  // namespace godwit::state
