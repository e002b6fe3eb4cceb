// A connection in memory: the algorithm without a network, for tests and examples. Both directions are
// bounded, so a writer blocks as it would on a socket. Each end: one thread writes, one reads, any may close
// or cancel.
#pragma once

#include <memory>
#include <utility>

#include "engine/model/record_stream.h"

namespace godwit::transport {

class Pipe;

class LoopbackEnd final : public ByteSink, public ByteSource {
 public:
  LoopbackEnd(std::shared_ptr<Pipe> out, std::shared_ptr<Pipe> in)
      : out_(std::move(out)), in_(std::move(in)) {}
  LoopbackEnd(const LoopbackEnd&) = delete;
  LoopbackEnd& operator=(const LoopbackEnd&) = delete;
  ~LoopbackEnd() override { close(); }

  /// Errors: PeerGone once the other end is closed, Cancelled.
  Status write(std::span<const std::byte> bytes) override;
  Status flush() override;
  /// Errors: PeerGone once the other end is closed and all it wrote has been read, Cancelled.
  Status read(std::span<std::byte> bytes) override;

  /// The other end reads what is on its way, then sees PeerGone; so do its writes at once. Idempotent.
  void close();
  /// Every blocked and every later call of this end returns Cancelled; the other end sees a close.
  void cancel();

 private:
  std::shared_ptr<Pipe> out_;
  std::shared_ptr<Pipe> in_;
};

struct Loopback {
  std::unique_ptr<LoopbackEnd> a;
  std::unique_ptr<LoopbackEnd> b;
};

/// `capacity`: bytes on their way in each direction at most, at least 1.
Loopback make_loopback(size_t capacity = size_t{4} << 20);

}  // namespace godwit::transport
