#include "engine/migration/serving_link.h"

#include "engine/migration/link.h"

namespace godwit::migration {

Result<std::unique_ptr<ServingLink>> ServingLink::connect(const LinkOptions& options,
                                                          const wire::SessionId& session, size_t lanes,
                                                          size_t pushing) {
  const auto where = TRY(transport::parse_host_port(options.destination));
  std::unique_ptr<ServingLink> link(new ServingLink());
  for (size_t i = 0; i <= pushing; ++i) {
    link->channels_.push_back(TRY(transport::connect(where, options.connect_timeout)));
    TRY(require_secure(link->channels_.back()->peer(), options.insecure));
    if (i > 0) link->channels_.back()->set_limiter(link->limiter_);
    // They follow on the channels of the session.
    wire::StreamHeader header;
    header.channel = static_cast<uint16_t>(lanes + i);
    header.channels = static_cast<uint16_t>(lanes + 1 + pushing);
    header.session = session;
    TRY(link->greet(i, options, header));
  }
  link->set_bandwidth(options.bandwidth);
  return link;
}

Status ServingLink::greet(size_t index, const LinkOptions& options, const wire::StreamHeader& header) {
  transport::Channel& channel = *channels_[index];
  TRY(channel.set_read_timeout(options.dead_after));
  TRY(channel.set_dead_after(options.dead_after));
  End end{std::make_unique<wire::RecordWriter>(channel, header),
          std::make_unique<wire::RecordReader>(channel)};
  TRY(end.writer->start());
  wire::Hello hello = make_hello(header.session, wire::ROLE_SOURCE, header.channels);
  (*hello.mutable_options())[kOption] = index == 0 ? "urgent" : "push";
  TRY(end.writer->write_message(wire::RecordType::kHello, hello));
  TRY(end.writer->flush());
  TRY(end.reader->start());
  const auto answer = TRY(wire::parse<wire::Hello>(TRY(wire::expect(*end.reader, wire::RecordType::kHello))));
  if (answer.role() != wire::ROLE_DESTINATION)
    return fail(ErrorKind::kCorrupt, "greet the destination engine", channel.peer_name(),
                "it does not speak as a destination");
  ends_.push_back(std::move(end));
  // A process that touches nothing asks for nothing; a dead peer shows by itself.
  return channel.set_read_timeout({});
}

uint64_t ServingLink::bytes_sent() const {
  uint64_t sum = 0;
  for (const auto& channel : channels_) sum += channel->bytes_sent();
  return sum;
}

void ServingLink::finish() {
  for (const End& end : ends_) (void)end.writer->finish();
}

void ServingLink::cancel() {
  for (const auto& channel : channels_) channel->cancel();
}

}  // namespace godwit::migration
