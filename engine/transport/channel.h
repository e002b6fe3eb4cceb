// One connected socket as a byte sink and a byte source. Moves bytes, never looks at them.
// One thread may write while another reads; cancel() and the settings are for any thread.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "engine/base/clock.h"
#include "engine/base/fd.h"
#include "engine/base/mapping.h"
#include "engine/model/record_stream.h"
#include "engine/transport/rate_limiter.h"
#include "engine/transport/send_queue.h"
#include "engine/transport/send_times.h"
#include "engine/transport/socket.h"

namespace godwit::transport {

class Channel final : public ByteSink, public ByteSource {
 public:
  /// Takes over a connected, blocking socket and turns Nagle's algorithm off. Errors: PeerGone, System.
  static Result<std::unique_ptr<Channel>> adopt(Fd socket);
  ~Channel() override = default;

  /// Small spans are gathered; a large one is sent from where it lies. Blocks when the peer does not keep up.
  /// After an error the channel is good for nothing but cancel().
  /// KERNEL: gathered buffers under way belong to the thread that wrote them; what is not sent when it ends
  /// stays behind until the next flush. So does the queue of a writer that turns to other work: flush()
  /// first. Errors: PeerGone (subject: the peer's address), Cancelled, System.
  Status write(std::span<const std::byte> bytes) override { return sender_.write(bytes); }
  /// Everything written is with the kernel. One system call for a small message. Errors as write().
  Status flush() override { return sender_.flush(); }

  /// Large spans are received where they shall lie. Errors: PeerGone (also: the peer closed), Timeout when
  /// nothing came for the read timeout (what came before is lost: the stream cannot go on), Cancelled,
  /// System.
  Status read(std::span<std::byte> bytes) override;

  /// Nothing more will be written; the peer reads to the end and then sees PeerGone. Flush first. Errors:
  /// System.
  Status shutdown_write();
  /// Every blocked and every later call of both sides fails: Cancelled here, PeerGone at the peer.
  void cancel();

  /// How long read() waits for the next bytes; zero (at first) for ever. Errors: System.
  Status set_read_timeout(Nanos timeout);
  /// A peer that acknowledges nothing for this long is gone, also while nothing is sent. Errors: System.
  Status set_dead_after(Nanos silence);
  /// Shared by the channels of a session; null for none. Before the first write.
  void set_limiter(std::shared_ptr<RateLimiter> limiter);

  /// What the peer would take at once is far less than it was: it reads more slowly than it gets. A link that
  /// is slow leaves it open. One system call; the writer's thread.
  [[nodiscard]] bool is_peer_behind();

  [[nodiscard]] uint64_t bytes_sent() const { return sender_.bytes_sent(); }  ///< handed to the kernel
  [[nodiscard]] uint64_t bytes_received() const { return received_.load(std::memory_order_relaxed); }
  [[nodiscard]] const Endpoint& peer() const { return peer_; }
  [[nodiscard]] const std::string& peer_name() const { return peer_name_; }
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  Channel(Fd socket, const Endpoint& peer, Mapping ahead);
  Result<size_t> receive(std::span<std::byte> into, int flags);
  Status set_option(int level, int option, const void* value, socklen_t size, const char* name);

  Fd socket_;
  Endpoint peer_;
  std::string peer_name_;
  std::atomic<bool> stop_{false};
  std::shared_ptr<RateLimiter> limiter_;
  SendQueue sender_;
  uint64_t widest_window_ = 0;    ///< that the peer ever offered
  SendTimes counted_;             ///< up to here
  bool window_was_full_ = false;  ///< for the larger part of the time that was counted last
  Mapping ahead_;                 ///< bytes received before they were asked for
  size_t ahead_begin_ = 0;
  size_t ahead_end_ = 0;
  std::atomic<uint64_t> received_{0};
};

/// Connects within `timeout`. Errors: PeerGone, Timeout, Usage (no such name), System.
Result<std::unique_ptr<Channel>> connect(const HostPort& where, Nanos timeout);

}  // namespace godwit::transport
