#include "engine/transport/send_queue.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "engine/base/log.h"
#include "engine/base/units.h"
#include "engine/transport/socket.h"

namespace godwit::transport {

namespace {

constexpr size_t kBufferSize = 1_MiB;
/// From here on a span is sent from where it lies.
constexpr size_t kLarge = 64_KiB;
/// With a limit, large spans are paid for in such pieces.
constexpr size_t kPiece = 1_MiB;

}  // namespace

SendQueue::~SendQueue() {
  abandon();
}

Error SendQueue::stopped() const {
  return fail(ErrorKind::kCancelled, "sending", peer_);
}

Status SendQueue::pay(size_t bytes) {
  if (limiter_ != nullptr && !limiter_->acquire(bytes, stop_)) return stopped();
  return {};
}

Status SendQueue::write(std::span<const std::byte> bytes) {
  if (stop_.load(std::memory_order_relaxed)) return stopped();
  return bytes.size() >= kLarge ? write_large(bytes) : gather(bytes);
}

Status SendQueue::gather(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    Buffer& buffer = filling();
    if (buffer.memory.data() == nullptr) buffer.memory = TRY(Mapping::anonymous(kBufferSize));
    const size_t n = std::min(bytes.size(), kBufferSize - buffer.used);
    std::memcpy(buffer.memory.data() + buffer.used, bytes.data(), n);
    buffer.used += n;
    bytes = bytes.subspan(n);
    if (buffer.used == kBufferSize) TRY(seal());
  }
  return {};
}

Status SendQueue::write_large(std::span<const std::byte> bytes) {
  TRY(drain());
  Buffer& buffer = filling();
  while (!bytes.empty()) {
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), kPiece));
    TRY(send_now({buffer.memory.data(), buffer.used}, piece));
    buffer.used = 0;
    bytes = bytes.subspan(piece.size());
  }
  return {};
}

Status SendQueue::flush() {
  if (stop_.load(std::memory_order_relaxed)) return stopped();
  TRY(drain());
  Buffer& buffer = filling();
  TRY(send_now({buffer.memory.data(), buffer.used}, {}));
  buffer.used = 0;
  return {};
}

/// Both spans in order, in one system call if the socket takes them.
Status SendQueue::send_now(std::span<const std::byte> first, std::span<const std::byte> second) {
  size_t left = first.size() + second.size();
  if (left == 0) return {};
  TRY(pay(left));
  while (left > 0) {
    iovec parts[2] = {{const_cast<std::byte*>(first.data()), first.size()},
                      {const_cast<std::byte*>(second.data()), second.size()}};
    msghdr message{};
    message.msg_iov = first.empty() ? parts + 1 : parts;
    message.msg_iovlen = first.empty() || second.empty() ? 1 : 2;
    const ssize_t n = ::sendmsg(socket_, &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return stop_.load() ? stopped() : socket_error("sending", peer_);
    const auto done = static_cast<size_t>(n);
    const size_t of_first = std::min(done, first.size());
    first = first.subspan(of_first);
    second = second.subspan(done - of_first);
    left -= done;
    sent_.fetch_add(done, std::memory_order_relaxed);
  }
  return {};
}

Status SendQueue::seal() {
  if (!ring_ && !ring_refused_) {
    Result<Ring> made = Ring::create(kBuffers);
    ring_refused_ = !made.ok();
    if (made.ok())
      ring_ = made.take();
    else
      log_debug("channel to {} sends without io_uring: {}", peer_, made.error().message());
  }
  if (ring_refused_) {
    TRY(send_now({filling().memory.data(), filling().used}, {}));
    filling().used = 0;
    return {};
  }
  TRY(pay(filling().used));
  ++queued_;
  TRY(collect(false));
  while (in_flight_ + queued_ == kBuffers) TRY(collect(true));
  return {};
}

Status SendQueue::submit_waiting() {
  if (in_flight_ > 0 || queued_ == 0) return {};
  for (size_t i = 0; i < queued_; ++i) {
    const size_t slot = (head_ + i) % kBuffers;
    io_uring_sqe* entry = ring_->next_entry();
    CHECK(entry != nullptr);
    // ORDER: two sends under way on one socket may overtake each other when the first must wait for room. A
    // chain runs one after the other, and MSG_WAITALL makes a short send break it instead of leaving a hole.
    ::io_uring_prep_send(entry, socket_, buffers_[slot].memory.data(), buffers_[slot].used,
                         MSG_WAITALL | MSG_NOSIGNAL);
    ::io_uring_sqe_set_data64(entry, slot);
    if (i + 1 < queued_) entry->flags |= IOSQE_IO_LINK;
  }
  in_flight_ = outstanding_ = TRY(ring_->submit());
  if (in_flight_ < queued_) return fail_errno("io_uring_enter", peer_, ENOMEM);
  queued_ = 0;
  return {};
}

/// Takes what completed, waiting for a whole chain if `wait`, and keeps the socket busy.
Status SendQueue::collect(bool wait) {
  while (outstanding_ > 0) {
    std::optional<Ring::Completion> done = ring_->poll();
    if (!done && !wait) return {};
    if (!done) done = TRY(ring_->wait());
    buffers_[done->tag].result = done->result;
    --outstanding_;
  }
  if (in_flight_ > 0) TRY(settle_chain());
  return submit_waiting();
}

/// Every completion of the chain is here. What a send left over goes out now, in order: the chain breaks at
/// an interrupted one, and the kernel cancels what a thread had under way when it ended.
Status SendQueue::settle_chain() {
  for (; in_flight_ > 0; --in_flight_, head_ = (head_ + 1) % kBuffers) {
    Buffer& buffer = buffers_[head_];
    const auto done = static_cast<size_t>(std::max(buffer.result, 0));
    const int err = buffer.result < 0 ? -buffer.result : 0;
    if (err != 0 && err != ECANCELED && err != EINTR && err != EAGAIN)
      return stop_.load() ? stopped() : socket_error("sending", peer_, err);
    sent_.fetch_add(done, std::memory_order_relaxed);
    std::span<const std::byte> rest(buffer.memory.data() + done, buffer.used - done);
    while (!rest.empty()) {
      const ssize_t n = ::send(socket_, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return stop_.load() ? stopped() : socket_error("sending", peer_);
      rest = rest.subspan(static_cast<size_t>(n));
      sent_.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
    }
    buffer.used = 0;
  }
  return {};
}

Status SendQueue::drain() {
  while (in_flight_ + queued_ > 0) TRY(collect(true));
  return {};
}

/// The kernel must be done with the buffers before they go.
void SendQueue::abandon() {
  if (outstanding_ > 0) ::shutdown(socket_, SHUT_RDWR);
  while (outstanding_ > 0 && ring_->wait().ok()) --outstanding_;
}

}  // namespace godwit::transport
