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
#include "engine/transport/tls.h"

namespace godwit::transport {

class Channel final : public ByteSink, public ByteSource {
 public:
  /// Takes over a connected, blocking socket and turns Nagle's algorithm off. Errors: PeerGone, System.
  static Result<std::unique_ptr<Channel>> adopt(Fd socket);
  ~Channel() override;

  /// From here on everything is encrypted, and the peer authenticated, once and before anything is written or
  /// read. Errors: Untrusted, Timeout (over all), PeerGone, Cancelled, System. After an error nothing was
  /// read as plain text; what the peer then writes may be.
  Status start_tls(std::shared_ptr<const Credentials> credentials, TlsRole role, Nanos timeout);
  [[nodiscard]] bool is_secure() const { return tls_ != nullptr; }
  /// Of this connection; see Tls::exporter(). Secure channels only.
  Result<Secret> exporter(std::string_view label, std::span<const std::byte> context) {
    return tls_->exporter(label, context);
  }
  /// Who it is by its credentials; the address for a plain channel.
  [[nodiscard]] std::string peer_identity() const { return tls_ ? tls_->peer_identity() : peer_name_; }
  /// Waits for the first byte, and leaves it there: does a TLS handshake begin with it? Errors as read().
  Result<bool> begins_with_tls();

  /// Small spans are gathered; a large one is sent from where it lies. Blocks when the peer does not keep up.
  /// After an error the channel is good for nothing but cancel().
  /// KERNEL: gathered buffers under way belong to the thread that wrote them; what is not sent when it ends
  /// stays behind until the next flush. So does the queue of a writer that turns to other work: flush()
  /// first. Errors: PeerGone (subject: the peer's address), Cancelled, System.
  Status write(std::span<const std::byte> bytes) override {
    return tls_ ? write_sealed(bytes) : sender_.write(bytes);
  }
  /// Everything written is with the kernel. One system call for a small message. Errors as write().
  Status flush() override { return tls_ ? flush_sealed() : sender_.flush(); }

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
  Result<size_t> receive(std::span<std::byte> into, int flags) {
    return tls_ ? receive_sealed(into) : receive_plain(into, flags);
  }
  Result<size_t> receive_plain(std::span<std::byte> into, int flags);
  Result<size_t> receive_sealed(std::span<std::byte> into);
  Status shake_hands(Tls& tls, Nanos deadline);
  Status write_sealed(std::span<const std::byte> bytes);
  Status flush_sealed();
  Status seal(std::span<const std::byte> bytes);
  Status send_sealed();
  Status close_sealed();
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

  std::unique_ptr<Tls> tls_;             ///< null: plain
  std::vector<std::byte> plain_;         ///< the writer's: small spans, for one record
  std::vector<std::byte> sealed_;        ///< the writer's: records to be sent
  Mapping encrypted_;                    ///< the reader's: records as they came
  std::span<const std::byte> unopened_;  ///< the rest of them
};

/// Connects within `timeout`. Errors: PeerGone, Timeout, Usage (no such name), System.
Result<std::unique_ptr<Channel>> connect(const HostPort& where, Nanos timeout);

}  // namespace godwit::transport
