#include "engine/transport/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

namespace godwit::transport {

namespace {

constexpr int kBacklog = 512;  // the channels of a session connect at once, and strangers beside them

Result<Fd> listen_on(const Endpoint& local) {
  Fd fd(::socket(local.address()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return fail_errno("socket", local.text());
  const int on = 1;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
    return fail_errno("setsockopt(SO_REUSEADDR)", local.text());
  if (::bind(fd.get(), local.address(), local.size()) != 0) return fail_errno("bind", local.text());
  if (::listen(fd.get(), kBacklog) != 0) return fail_errno("listen", local.text());
  return fd;
}

/// A connection that went away again between the wait and the accept, or trouble that belongs to it alone.
bool passing(int err) {
  return err == EAGAIN || err == EINTR || err == ECONNABORTED || err == EPROTO || err == ENETDOWN ||
         err == EHOSTUNREACH || err == ENETUNREACH;
}

}  // namespace

Result<Listener> Listener::create(std::string_view address) {
  const HostPort where = TRY(parse_host_port(address));
  const std::vector<Endpoint> locals = TRY(resolve(where, true));
  Error first =
      fail(ErrorKind::kUsage, "resolving the name", std::string(address), "the name has no address");
  for (size_t i = 0; i < locals.size(); ++i) {
    Result<Fd> made = listen_on(locals[i]);
    if (!made.ok()) {
      if (i == 0) first = made.take_error();
      continue;
    }
    Listener listener;
    listener.socket_ = made.take();
    listener.local_ = TRY(Endpoint::local_of(listener.socket_.get()));
    listener.cancelled_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!listener.cancelled_.valid()) return fail_errno("eventfd", std::string(address));
    return listener;
  }
  return first;
}

Result<std::unique_ptr<Channel>> Listener::accept(Nanos timeout) {
  const Nanos deadline = monotonic_now() + timeout;
  const bool forever = timeout < Nanos(0);
  while (true) {
    const Nanos left = forever ? timeout : std::max(Nanos(0), deadline - monotonic_now());
    TRY(wait_for(socket_.get(), POLLIN, left, cancelled_.get(), "accept", local_.text()));
    Fd accepted(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted.valid() && passing(errno)) continue;
    if (!accepted.valid()) return fail_errno("accept", local_.text());
    Result<std::unique_ptr<Channel>> channel = Channel::adopt(std::move(accepted));
    // A peer that has already left is its own loss, not the listener's.
    if (channel.ok() || channel.error().kind != ErrorKind::kPeerGone) return channel;
  }
}

void Listener::cancel() {
  const uint64_t one = 1;
  // An eventfd takes a count this small without blocking or failing.
  [[maybe_unused]] const ssize_t n = ::write(cancelled_.get(), &one, sizeof one);
}

}  // namespace godwit::transport
