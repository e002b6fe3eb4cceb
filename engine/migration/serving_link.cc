#include "engine/migration/serving_link.h"

namespace godwit::migration {

Result<std::unique_ptr<ServingLink>> ServingLink::connect(const LinkOptions& options, const Link& link,
                                                          size_t pushing) {
  const auto where = TRY(transport::parse_host_port(options.destination));
  std::unique_ptr<ServingLink> made(new ServingLink());
  for (size_t i = 0; i <= pushing; ++i) {
    bool reached = false;
    made->channels_.push_back(TRY(open_channel(where, options, options.connect_timeout, reached)));
    if (i > 0) made->channels_.back()->set_limiter(made->limiter_);
    // They follow on the channels of the session.
    wire::StreamHeader header;
    header.channel = static_cast<uint16_t>(link.channels() + i);
    header.channels = static_cast<uint16_t>(link.channels() + 1 + pushing);
    header.session = link.session();
    TRY(made->greet(i, options, link, header));
  }
  made->set_bandwidth(options.bandwidth);
  return made;
}

Status ServingLink::greet(size_t index, const LinkOptions& options, const Link& link,
                          const wire::StreamHeader& header) {
  wire::Hello ours = make_hello(header.session, wire::ROLE_SOURCE, header.channels), theirs;
  (*ours.mutable_options())[kOption] = index == 0 ? "urgent" : "push";
  transport::Channel& channel = *channels_[index];
  ends_.push_back(TRY(greet_destination(channel, header, link.binding(), options, std::move(ours), theirs)));
  // A process that touches nothing asks for nothing; a dead peer shows by itself.
  return channel.set_read_timeout({});
}

uint64_t ServingLink::bytes_sent() const {
  uint64_t sum = 0;
  for (const auto& channel : channels_) sum += channel->bytes_sent();
  return sum;
}

void ServingLink::finish() {
  for (const LinkEnd& end : ends_) (void)end.writer->finish();
}

void ServingLink::cancel() {
  for (const auto& channel : channels_) channel->cancel();
}

}  // namespace godwit::migration
