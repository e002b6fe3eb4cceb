// The two ends of one ordered stream of bytes. What stands behind them (a socket, a file, memory) is not
// known above.
#pragma once

#include <cstddef>
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

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills all of `bytes` or fails. Blocks. Errors: PeerGone at the end of the stream, Timeout, Cancelled.
  virtual Status read(std::span<std::byte> bytes) = 0;
};

}  // namespace godwit
