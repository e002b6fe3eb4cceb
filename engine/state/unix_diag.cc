#include "engine/state/unix_diag.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <thread>

#include "engine/base/files.h"

namespace godwit::state {
namespace {

Result<Fd> diag_socket() {
  Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!socket.valid()) return fail_errno("socket(NETLINK_SOCK_DIAG)", "this engine");
  return socket;
}

/// A socket belongs to the network namespace of the thread that makes it: a thread goes there for the
/// purpose.
Result<Fd> diag_socket_in(const std::string& path) {
  const Fd ns(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns.valid()) return fail_errno("open", path);
  std::optional<Result<Fd>> made;
  std::thread visitor([&] {
    if (::setns(ns.get(), CLONE_NEWNET) != 0)
      made.emplace(fail_errno("setns", path));
    else
      made.emplace(diag_socket());
  });
  visitor.join();
  return std::move(*made);
}

template <typename T>
T value_of(const rtattr* attribute) {
  T value{};
  std::memcpy(&value, RTA_DATA(attribute), std::min<size_t>(sizeof value, RTA_PAYLOAD(attribute)));
  return value;
}

void take_attribute(const rtattr* attribute, UnixSocketInfo& info) {
  switch (attribute->rta_type) {
    case UNIX_DIAG_NAME:
      info.name.emplace(static_cast<const char*>(RTA_DATA(attribute)), RTA_PAYLOAD(attribute));
      // A path comes with the zero that ends it.
      if (info.name->size() > 1 && info.name->front() != '\0' && info.name->back() == '\0')
        info.name->pop_back();
      break;
    case UNIX_DIAG_VFS: {
      const auto vfs = value_of<unix_diag_vfs>(attribute);
      info.file_inode = vfs.udiag_vfs_ino;
      info.file_device = vfs.udiag_vfs_dev;
      break;
    }
    case UNIX_DIAG_PEER:
      info.peer = value_of<uint32_t>(attribute);
      break;
    case UNIX_DIAG_RQLEN: {
      const auto queues = value_of<unix_diag_rqlen>(attribute);
      info.receive_queue = queues.udiag_rqueue;
      info.send_queue = queues.udiag_wqueue;
      break;
    }
    case UNIX_DIAG_SHUTDOWN:
      info.shutdown = value_of<uint8_t>(attribute);
      break;
    default:
      break;
  }
}

Result<UnixSocketInfo> parse_answer(const nlmsghdr* header, const std::string& subject) {
  if (header->nlmsg_type == NLMSG_ERROR) {
    const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
    if (error->error == -ENOENT)
      return fail(ErrorKind::kRetry, "find a unix socket", subject, "it was closed meanwhile");
    return fail_errno("query a unix socket (sock_diag)", subject, -error->error);
  }
  const auto* message = static_cast<const unix_diag_msg*>(NLMSG_DATA(header));
  UnixSocketInfo info;
  info.state = message->udiag_state;
  auto left = static_cast<int>(header->nlmsg_len - NLMSG_LENGTH(sizeof *message));
  const auto* attribute = reinterpret_cast<const rtattr*>(message + 1);
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) take_attribute(attribute, info);
  return info;
}

}  // namespace

Result<UnixDiag> UnixDiag::open(const tracee::Process& process) {
  const std::string path = process.path("ns/net");
  const std::string theirs = TRY(read_link(path));
  const std::string ours = TRY(read_link("/proc/thread-self/ns/net"));
  return UnixDiag(TRY(theirs == ours ? diag_socket() : diag_socket_in(path)));
}

Result<UnixSocketInfo> UnixDiag::query(uint64_t inode) const {
  const std::string subject = fmt::format("socket:[{}]", inode);
  struct {
    nlmsghdr header;
    unix_diag_req request;
  } ask{};
  ask.header.nlmsg_len = sizeof ask;
  ask.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  ask.header.nlmsg_flags = NLM_F_REQUEST;
  ask.request.sdiag_family = AF_UNIX;
  ask.request.udiag_states = ~0U;
  ask.request.udiag_ino = static_cast<uint32_t>(inode);
  ask.request.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
  ask.request.udiag_cookie[0] = ask.request.udiag_cookie[1] = ~0U;  // any
  if (::send(socket_.get(), &ask, sizeof ask, 0) != sizeof ask)
    return fail_errno("query a unix socket (sock_diag)", subject);
  alignas(nlmsghdr) std::array<char, 4096> answer;
  const ssize_t got = ::recv(socket_.get(), answer.data(), answer.size(), 0);
  if (got < 0) return fail_errno("query a unix socket (sock_diag)", subject);
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
  if (!NLMSG_OK(header, static_cast<size_t>(got)))
    return fail(ErrorKind::kBug, "query a unix socket (sock_diag)", subject,
                "the kernel's answer is cut short");
  return parse_answer(header, subject);
}

}  // namespace godwit::state
