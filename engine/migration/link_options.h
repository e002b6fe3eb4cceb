// Where a destination engine is, and how to speak to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/clock.h"
#include "engine/transport/credentials.h"

namespace godwit::migration {

struct LinkOptions {
  std::string destination;  ///< "HOST:PORT"
  size_t channels = 0;      ///< 0: as many as pay (choose_channels)
  uint64_t bandwidth = 0;   ///< bytes per second over all channels, 0 for no limit
  /// TLS on every connection; null: plain TCP, which needs `insecure` beyond this host.
  std::shared_ptr<const transport::Credentials> credentials;
  bool insecure = false;  ///< plain TCP to a host that is not this one
  Nanos connect_timeout{std::chrono::seconds(10)};
  Nanos dead_after{std::chrono::seconds(10)};  ///< a peer that acknowledges nothing for so long is gone
  /// How long an answer may take of a peer that acknowledges: it may have much to install.
  [[nodiscard]] Nanos answer_timeout() const { return 6 * dead_after; }
  /// How long to ask an unreachable peer after COMMIT.
  [[nodiscard]] Nanos verdict_patience() const { return 3 * dead_after; }
};

}  // namespace godwit::migration
