// The two ends of one ordered stream of bytes. What stands behind them (a socket, a file, memory) is not
// known above.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.h"

namespace godwit {

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  /// Takes all of `bytes` (they are copied or sent before the call returns). May block until the peer takes
  /// them. Errors: PeerGone, System (disk full), Cancelled.
  virtual Status write(std::span<const std::byte> bytes) = 0;
  /// Everything written so far is on its way (socket) or in the file. May block.
  virtual Status flush() = 0;
};

/// A sink that keeps what it is given, so that its beginning can be written last.
class ImageSink : public ByteSink {
 public:
  /// Other bytes in place of those that begin at `position`, all of which were written before. Errors:
  /// System, Bug.
  virtual Status rewrite(uint64_t position, std::span<const std::byte> bytes) = 0;
  /// The image is complete, and safe once this has returned. Nothing may be written afterwards. Errors:
  /// System.
  virtual Status finish() = 0;
  [[nodiscard]] virtual uint64_t bytes_written() const = 0;
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills all of `bytes` or fails. Blocks. Errors: PeerGone at the end of the stream, Timeout, Cancelled.
  virtual Status read(std::span<std::byte> bytes) = 0;
};

}  // namespace godwit
