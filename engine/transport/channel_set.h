// The channels of one session, under one bandwidth limit.
#pragma once

#include <memory>
#include <vector>

#include "engine/transport/channel.h"

namespace godwit::transport {

class ChannelSet {
 public:
  /// At least one; the order is the channel index of the session.
  explicit ChannelSet(std::vector<std::unique_ptr<Channel>> channels);

  [[nodiscard]] size_t size() const { return channels_.size(); }
  [[nodiscard]] Channel& at(size_t index) { return *channels_[index]; }
  /// The first one also carries everything that is not pages.
  [[nodiscard]] Channel& control() { return *channels_.front(); }

  Status flush();  ///< all of them; by the thread that wrote
  void cancel();   ///< all of them; any thread
  /// Bytes per second over all channels together, 0 for no limit. Any thread.
  void set_bandwidth(uint64_t bytes_per_second) { limiter_->set_rate(bytes_per_second); }

  [[nodiscard]] uint64_t bytes_sent() const;
  [[nodiscard]] uint64_t bytes_received() const;

 private:
  std::vector<std::unique_ptr<Channel>> channels_;
  std::shared_ptr<RateLimiter> limiter_ = std::make_shared<RateLimiter>();
};

}  // namespace godwit::transport
