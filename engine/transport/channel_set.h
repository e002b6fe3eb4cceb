// The channels of one session. An address always travels on the same channel, so versions of a page never
// overtake each other and each channel's XBZRLE cache needs no lock.
#pragma once

#include <memory>
#include <vector>

#include "engine/model/remote_addr.h"
#include "engine/transport/channel.h"

namespace godwit::transport {

/// Addresses are dealt out in blocks of this size: a run of pages stays whole within one, and a busy region
/// still spreads over all channels.
constexpr uint64_t kChannelBlock = uint64_t{2} << 20;

constexpr size_t partition(uint64_t at, size_t channels) {
  return (at / kChannelBlock) % channels;
}
/// Where the block of `at` ends: a run that crosses it must be split.
constexpr uint64_t partition_end(uint64_t at) {
  return (at / kChannelBlock + 1) * kChannelBlock;
}

class ChannelSet {
 public:
  /// At least one; the order is the channel index of the session.
  explicit ChannelSet(std::vector<std::unique_ptr<Channel>> channels);

  [[nodiscard]] size_t size() const { return channels_.size(); }
  [[nodiscard]] Channel& at(size_t index) { return *channels_[index]; }
  /// The first one also carries everything that is not pages.
  [[nodiscard]] Channel& control() { return *channels_.front(); }

  [[nodiscard]] size_t index_of(RemoteAddr address) const { return partition(address.value(), size()); }
  /// Different objects start on different channels.
  [[nodiscard]] size_t index_of_object(uint64_t object, uint64_t offset) const {
    return partition(object * kChannelBlock + offset, size());
  }

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
