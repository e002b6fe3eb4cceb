// The sending half of a channel: gathers small writes in 1 MiB buffers, lets full ones leave by io_uring
// while the caller fills the next, and sends large spans straight from the caller's memory. Stage:
// RecordWriter -> SendQueue -> socket. One thread at a time.
//
// Why three ways (docs/decisions/sending.md): a large span copied into a buffer first moved 0.8 times as much
// as the same span sent from where it lay, however the copy left; the socket's own buffer already overlaps
// producer and peer. A small flush is one send(2), which took as long as one io_uring_enter and needs no
// completion to be consumed.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/base/mapping.h"
#include "engine/transport/rate_limiter.h"
#include "engine/transport/ring.h"

namespace godwit::transport {

class SendQueue {
 public:
  /// Borrows `socket`, which must outlive the queue. `stop` ends every wait once the socket is shut down too.
  SendQueue(int socket, std::string peer, const std::atomic<bool>& stop)
      : socket_(socket), peer_(std::move(peer)), stop_(stop) {}
  SendQueue(const SendQueue&) = delete;
  SendQueue& operator=(const SendQueue&) = delete;
  ~SendQueue();

  Status write(std::span<const std::byte> bytes);
  /// Everything is with the kernel afterwards. One system call when nothing is under way.
  Status flush();
  void set_limiter(std::shared_ptr<RateLimiter> limiter) { limiter_ = std::move(limiter); }

  [[nodiscard]] uint64_t bytes_sent() const { return sent_.load(std::memory_order_relaxed); }

 private:
  struct Buffer {
    Mapping memory;
    size_t used = 0;
    int result = 0;  ///< of its submission
  };
  static constexpr size_t kBuffers = 4;

  Status gather(std::span<const std::byte> bytes);
  Status write_large(std::span<const std::byte> bytes);
  Status send_now(std::span<const std::byte> first, std::span<const std::byte> second);
  Status pay(size_t bytes);
  Status seal();            ///< the filling buffer joins the queue, the next one becomes it
  Status submit_waiting();  ///< starts a chain of every queued buffer, unless one is under way
  Status collect(bool wait);
  Status settle_chain();
  Status drain();
  void abandon();

  Buffer& filling() { return buffers_[(head_ + in_flight_ + queued_) % kBuffers]; }
  [[nodiscard]] Error stopped() const;

  const int socket_;
  const std::string peer_;
  const std::atomic<bool>& stop_;
  std::shared_ptr<RateLimiter> limiter_;
  std::optional<Ring> ring_;
  bool ring_refused_ = false;  ///< no io_uring here: full buffers are sent by send(2)
  std::array<Buffer, kBuffers> buffers_;
  // Buffers in order: `in_flight_` ones from head_ are with the kernel, then `queued_` full ones, then the
  // filling one.
  size_t head_ = 0;
  size_t in_flight_ = 0;
  size_t queued_ = 0;
  size_t outstanding_ = 0;  ///< completions still to come for those in flight
  std::atomic<uint64_t> sent_{0};
};

}  // namespace godwit::transport
