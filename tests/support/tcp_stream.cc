#include "tests/support/tcp_stream.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::test {
namespace {

constexpr uint64_t kOutstanding = 192 * 1024;  // what the client lets be under way
constexpr size_t kPiece = 16 * 1024;
constexpr uint8_t kChange = 0x5a;  // what the server does to each byte

uint8_t pattern(uint64_t position) {
  return static_cast<uint8_t>((position * 2654435761u) >> 13);
}

void wait_on(int fd, short events, int other = -1) {
  std::array<pollfd, 2> waits = {pollfd{fd, events, 0}, pollfd{other, POLLIN, 0}};
  ::poll(waits.data(), waits.size(), -1);
}

}  // namespace

EchoServer::EchoServer(Fd connection)
    : connection_(std::move(connection)), wake_(::eventfd(0, EFD_NONBLOCK)) {
  thread_ = std::thread([this] { serve(); });
}

EchoServer::~EchoServer() {
  pause();
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  go_on();
  thread_.join();
}

void EchoServer::pause() {
  std::unique_lock lock(mutex_);
  pause_ = true;
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof(one)) < 0) complaint_ = "eventfd";
  changed_.wait(lock, [&] { return paused_; });
}

void EchoServer::go_on() {
  const std::lock_guard lock(mutex_);
  uint64_t count = 0;
  if (::read(wake_.get(), &count, sizeof(count)) < 0) complaint_ = "eventfd";
  pause_ = false;
  changed_.notify_all();
}

void EchoServer::go_on(Fd with) {
  connection_ = std::move(with);
  go_on();
}

std::string EchoServer::complaint() {
  const std::lock_guard lock(mutex_);
  return complaint_;
}

void EchoServer::complain(std::string text) {
  const std::lock_guard lock(mutex_);
  if (complaint_.empty()) complaint_ = std::move(text);
}

void EchoServer::serve() {
  bool open = true;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (pause_) {
        paused_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !pause_; });
        paused_ = false;
      }
      if (stop_) return;
    }
    if (open) open = step();
    const int fd = open ? connection_.get() : -1;
    wait_on(fd, static_cast<short>(pending_.empty() ? POLLIN : POLLIN | POLLOUT), wake_.get());
  }
}

bool EchoServer::step() {
  std::array<uint8_t, kPiece> piece;
  const ssize_t got = ::recv(connection_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
  if (got == 0) return false;
  if (got < 0 && errno != EAGAIN) {
    complain(fmt::format("server: recv: {}", std::strerror(errno)));
    return false;
  }
  for (ssize_t i = 0; i < got; ++i) {
    const uint8_t byte = piece[static_cast<size_t>(i)];
    if (byte != pattern(received_)) complain(fmt::format("server: wrong byte at {}", received_));
    pending_.push_back(byte ^ kChange);
    ++received_;
  }
  if (pending_.empty()) return true;
  const ssize_t put =
      ::send(connection_.get(), pending_.data(), pending_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (put < 0 && errno != EAGAIN) {
    complain(fmt::format("server: send: {}", std::strerror(errno)));
    return false;
  }
  if (put > 0) pending_.erase(pending_.begin(), pending_.begin() + put);
  return true;
}

StreamClient::StreamClient(Fd connection) : connection_(std::move(connection)) {
  thread_ = std::thread([this] { stream(); });
}

StreamClient::~StreamClient() {
  if (thread_.joinable()) (void)finish();
}

bool StreamClient::wait_for(uint64_t more) {
  std::unique_lock lock(mutex_);
  const uint64_t target = received_ + more;
  changed_.wait(lock, [&] { return received_ >= target || over_; });
  return received_ >= target;
}

StreamResult StreamClient::finish() {
  {
    const std::lock_guard lock(mutex_);
    last_ = true;
  }
  thread_.join();
  result_.bytes = received_;
  socklen_t size = sizeof(result_.info);
  ::getsockopt(connection_.get(), IPPROTO_TCP, TCP_INFO, &result_.info, &size);
  connection_.reset();
  return result_;
}

bool StreamClient::send_some() {
  std::array<uint8_t, kPiece> piece;
  const size_t want =
      std::min<uint64_t>(piece.size(), kOutstanding - std::min(kOutstanding, sent_ - received_));
  for (size_t i = 0; i < want; ++i) piece[i] = pattern(sent_ + i);
  const ssize_t put =
      want == 0 ? 0 : ::send(connection_.get(), piece.data(), want, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (put < 0 && errno != EAGAIN) {
    result_.complaint = fmt::format("client: send: {}", std::strerror(errno));
    return false;
  }
  if (put > 0) sent_ += static_cast<uint64_t>(put);
  return true;
}

bool StreamClient::receive_some() {
  std::array<uint8_t, kPiece> piece;
  const ssize_t got = ::recv(connection_.get(), piece.data(), piece.size(), MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return true;
  if (got <= 0) {
    result_.complaint = got == 0 ? "client: closed" : fmt::format("client: recv: {}", std::strerror(errno));
    return false;
  }
  const Nanos now = monotonic_now();
  if (last_arrival_ != Nanos{})
    result_.longest_silence = std::max(result_.longest_silence, now - last_arrival_);
  last_arrival_ = now;
  const std::lock_guard lock(mutex_);
  for (ssize_t i = 0; i < got; ++i, ++received_) {
    if (piece[static_cast<size_t>(i)] == (pattern(received_) ^ kChange)) continue;
    result_.complaint = fmt::format("client: wrong byte at {}", received_);
    return false;
  }
  changed_.notify_all();
  return true;
}

void StreamClient::stream() {
  for (;;) {
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      last = last_;
    }
    if ((!last && !send_some()) || !receive_some()) break;
    if (last && received_ == sent_) break;
    const bool may_send = !last && sent_ - received_ < kOutstanding;
    wait_on(connection_.get(), static_cast<short>(may_send ? POLLIN | POLLOUT : POLLIN));
  }
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

}  // namespace godwit::test
