#include "engine/transport/channel_set.h"

namespace godwit::transport {

ChannelSet::ChannelSet(std::vector<std::unique_ptr<Channel>> channels) : channels_(std::move(channels)) {
  CHECK(!channels_.empty());
  for (const auto& channel : channels_) channel->set_limiter(limiter_);
}

Status ChannelSet::flush() {
  for (const auto& channel : channels_) TRY(channel->flush());
  return {};
}

void ChannelSet::cancel() {
  for (const auto& channel : channels_) channel->cancel();
}

uint64_t ChannelSet::bytes_sent() const {
  uint64_t sum = 0;
  for (const auto& channel : channels_) sum += channel->bytes_sent();
  return sum;
}

uint64_t ChannelSet::bytes_received() const {
  uint64_t sum = 0;
  for (const auto& channel : channels_) sum += channel->bytes_received();
  return sum;
}

}  // namespace godwit::transport
