#include "engine/transport/channel.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>

#include "engine/base/units.h"
#include "engine/transport/send_times.h"

namespace godwit::transport {

namespace {

/// Bytes received ahead of a small read. Not more: what lies here is copied once more, and the bulk of a page
/// batch shall go straight to where the caller wants it.
constexpr size_t kAhead = 64_KiB;
/// From here on the rest of a read is received in the caller's memory.
constexpr size_t kDirect = 16_KiB;

}  // namespace

Channel::Channel(Fd socket, const Endpoint& peer, Mapping ahead)
    : socket_(std::move(socket)),
      peer_(peer),
      peer_name_(peer.text()),
      sender_(socket_.get(), peer_name_, stop_),
      ahead_(std::move(ahead)) {}

Result<std::unique_ptr<Channel>> Channel::adopt(Fd socket) {
  const Endpoint peer = TRY(Endpoint::peer_of(socket.get()));
  Mapping ahead = TRY(Mapping::anonymous(kAhead));
  std::unique_ptr<Channel> channel(new Channel(std::move(socket), peer, std::move(ahead)));
  if (peer.address()->sa_family != AF_UNIX) {
    const int on = 1;
    TRY(channel->set_option(IPPROTO_TCP, TCP_NODELAY, &on, sizeof on, "TCP_NODELAY"));
  }
  return channel;
}

Status Channel::set_option(int level, int option, const void* value, socklen_t size, const char* name) {
  if (::setsockopt(socket_.get(), level, option, value, size) != 0)
    return fail_errno(fmt::format("setsockopt({})", name), peer_name_);
  return {};
}

Status Channel::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    if (stop_.load(std::memory_order_relaxed)) return fail(ErrorKind::kCancelled, "receiving", peer_name_);
    if (const size_t have = std::min(ahead_end_ - ahead_begin_, bytes.size()); have > 0) {
      std::memcpy(bytes.data(), ahead_.data() + ahead_begin_, have);
      ahead_begin_ += have;
      bytes = bytes.subspan(have);
    } else if (bytes.size() >= kDirect) {
      bytes = bytes.subspan(TRY(receive(bytes, MSG_WAITALL)));
    } else {
      ahead_begin_ = ahead_end_ = 0;
      ahead_end_ = TRY(receive(ahead_.span(), 0));
    }
  }
  return {};
}

/// At least one byte.
Result<size_t> Channel::receive_plain(std::span<std::byte> into, int flags) {
  while (true) {
    const ssize_t n = ::recv(socket_.get(), into.data(), into.size(), flags);
    if (n > 0) {
      received_.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
      return static_cast<size_t>(n);
    }
    // KERNEL: with a receive timeout, recv(2) is not restarted after a signal.
    if (n < 0 && errno == EINTR) continue;
    if (stop_.load()) return fail(ErrorKind::kCancelled, "receiving", peer_name_);
    if (n == 0)
      return fail(ErrorKind::kPeerGone,
                  tls_ ? "receiving: the connection was cut: TLS ends it otherwise"
                       : "receiving: the other engine closed the connection",
                  peer_name_);
    if (errno == EAGAIN)
      return fail(ErrorKind::kTimeout, "receiving", peer_name_, "nothing came within the time limit");
    return socket_error("receiving", peer_name_);
  }
}

/// KERNEL: the window grows with what the peer reads in a round trip, up to its largest buffer. Measured: a
/// peer that is slower than its link offers a quarter of what it had offered before, any other all of it.
bool Channel::is_peer_behind() {
  constexpr Nanos kEnough = std::chrono::milliseconds(40);  // some ticks of the kernel's timer
  const SendTimes now = send_times(socket_.get()).value_or(SendTimes{});
  widest_window_ = std::max(widest_window_, now.peer_window);
  const Nanos busy = now.busy - counted_.busy;
  if (busy >= kEnough) {
    window_was_full_ = 2 * (now.limited_by_peer - counted_.limited_by_peer) > busy;
    counted_ = now;
  }
  return window_was_full_ || now.peer_window < widest_window_ / 2;
}

Status Channel::shutdown_write() {
  if (tls_) TRY(close_sealed());
  if (::shutdown(socket_.get(), SHUT_WR) != 0) return socket_error("shutdown", peer_name_);
  return {};
}

void Channel::cancel() {
  // ORDER: the flag first, so that whoever the shutdown wakes finds out why.
  stop_.store(true);
  ::shutdown(socket_.get(), SHUT_RDWR);
  if (limiter_ != nullptr) limiter_->wake();
}

Status Channel::set_read_timeout(Nanos timeout) {
  const auto micros = std::chrono::ceil<std::chrono::microseconds>(timeout).count();
  const timeval value{micros / 1'000'000, micros % 1'000'000};
  return set_option(SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value, "SO_RCVTIMEO");
}

Status Channel::set_dead_after(Nanos silence) {
  if (peer_.address()->sa_family == AF_UNIX) return {};  // its peer dies with a reset
  const auto millis = std::chrono::ceil<std::chrono::milliseconds>(silence).count();
  const auto limit = static_cast<unsigned>(std::clamp<int64_t>(millis, 1, 1 << 30));
  const int on = 1;
  // Keepalive counts whole seconds: probes start after a third and come each third, the timeout decides.
  const int interval = static_cast<int>(std::clamp<int64_t>(millis / 3000, 1, 32767));
  TRY(set_option(SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on, "SO_KEEPALIVE"));
  TRY(set_option(IPPROTO_TCP, TCP_KEEPIDLE, &interval, sizeof interval, "TCP_KEEPIDLE"));
  TRY(set_option(IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval, "TCP_KEEPINTVL"));
  return set_option(IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof limit, "TCP_USER_TIMEOUT");
}

void Channel::set_limiter(std::shared_ptr<RateLimiter> limiter) {
  limiter_ = limiter;
  sender_.set_limiter(std::move(limiter));
}

Result<std::unique_ptr<Channel>> connect(const HostPort& where, Nanos timeout) {
  return Channel::adopt(TRY(connect_socket(where, timeout)));
}

}  // namespace godwit::transport
