#include "engine/migration/link.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/fault_point.h"
#include "engine/base/helper_pool.h"

namespace godwit::migration {
namespace {

/// A resolver's questions are short; it comes again when one is lost.
constexpr Nanos kQuestionTimeout = std::chrono::seconds(5);
/// A few fill any link; each more makes the barriers dearer.
constexpr size_t kMostChannels = 4;
constexpr int kAttempts = 6;
constexpr Nanos kPause = std::chrono::milliseconds(100);  ///< before the second attempt; then longer

/// A peer that refuses our certificate says so, closes, and may be gone before we have sent our greeting.
Status prefer_refusal(Status sent, wire::RecordReader& reader) {
  if (sent.ok() || sent.error().kind != ErrorKind::kPeerGone) return sent;
  auto answer = reader.start();
  return !answer.ok() && answer.error().kind == ErrorKind::kUntrusted ? answer.take_error()
                                                                      : sent.take_error();
}

std::string host_of(const transport::Endpoint& endpoint) {
  std::string text = endpoint.text();
  text.resize(text.rfind(':'));
  if (text.starts_with('[')) text = text.substr(1, text.size() - 2);
  return text;
}

}  // namespace

Result<std::unique_ptr<transport::Channel>> open_channel(const transport::HostPort& where,
                                                         const LinkOptions& options, Nanos timeout,
                                                         bool& reached) {
  auto channel = TRY(transport::connect(where, timeout));
  reached = true;
  TRY(require_secure(channel->peer(), options.credentials != nullptr, options.insecure));
  if (options.credentials) TRY(channel->start_tls(options.credentials, transport::TlsRole::kClient, timeout));
  return channel;
}

size_t choose_channels() {
  return std::clamp<size_t>(processors() / 2, 1, kMostChannels);
}

Status require_secure(const transport::Endpoint& endpoint, bool has_credentials, bool insecure) {
  if (has_credentials || insecure || endpoint.is_loopback()) return {};
  return fail(ErrorKind::kUntrusted, "use plain TCP beyond this host", endpoint.text(),
              "the stream holds all of the process' memory, and whoever sends one runs code here: give both "
              "sides --psk-file, or --tls-ca, --tls-cert and --tls-key (`godwit keygen` makes them), or "
              "accept that with --insecure");
}

wire::Hello make_hello(const wire::SessionId& session, wire::Role role, size_t channels) {
  wire::Hello hello;
  hello.set_version(uint32_t{wire::kWireMajor} << 16 | wire::kWireMinor);
  for (const std::string_view feature : kFeatures) hello.add_features(std::string(feature));
  hello.set_session(session.data(), session.size());
  hello.set_engine("godwit 0.1.0");
  hello.set_pid(static_cast<uint32_t>(::getpid()));
  hello.set_role(role);
  hello.set_channels(static_cast<uint32_t>(channels));
  return hello;
}

/// A destination that many strangers crowd may lose us among them, before it knows who we are.
Result<std::unique_ptr<Link>> Link::connect(const LinkOptions& options) {
  for (int attempt = 1;; ++attempt) {
    bool reached = false;
    auto link = connect_once(options, reached);
    const bool lost =
        !link.ok() && reached && options.credentials && link.error().kind == ErrorKind::kPeerGone;
    if (!lost || attempt == kAttempts) return link;
    const timespec pause = to_timespec(kPause * attempt);
    ::nanosleep(&pause, nullptr);
  }
}

/// `reached`: the destination accepted a connection.
Result<std::unique_ptr<Link>> Link::connect_once(const LinkOptions& options, bool& reached) {
  const auto where = TRY(transport::parse_host_port(options.destination));
  std::unique_ptr<Link> link(new Link());
  link->session_ = TRY(wire::new_session_id());
  const size_t count = options.channels == 0 ? choose_channels() : options.channels;
  std::vector<std::unique_ptr<transport::Channel>> channels;
  for (size_t i = 0; i < count; ++i)
    channels.push_back(TRY(open_channel(where, options, options.connect_timeout, reached)));
  link->channels_ = std::make_unique<transport::ChannelSet>(std::move(channels));
  link->channels_->set_bandwidth(options.bandwidth);
  for (size_t i = 0; i < count; ++i) TRY(link->greet(i, options));
  return link;
}

Result<LinkEnd> greet_destination(transport::Channel& channel, const wire::StreamHeader& header,
                                  const SessionBinding& binding, const LinkOptions& options, wire::Hello ours,
                                  wire::Hello& theirs) {
  TRY(channel.set_read_timeout(options.dead_after));
  TRY(channel.set_dead_after(options.dead_after));
  LinkEnd end{std::make_unique<wire::RecordWriter>(channel, header),
              std::make_unique<wire::RecordReader>(channel)};
  TRY(end.writer->start());
  ours.set_proof(TRY(binding.prove(channel, wire::ROLE_SOURCE, header)));
  TRY(end.writer->write_message(wire::RecordType::kHello, ours));
  TRY(prefer_refusal(end.writer->flush(), *end.reader));
  TRY(end.reader->start());
  theirs = TRY(wire::parse<wire::Hello>(TRY(wire::expect(*end.reader, wire::RecordType::kHello))));
  if (theirs.role() != wire::ROLE_DESTINATION)
    return fail(ErrorKind::kCorrupt, "greet the destination engine", channel.peer_name(),
                "it does not speak as a destination");
  TRY(binding.check(channel, theirs, header));
  TRY(channel.set_read_timeout(options.answer_timeout()));
  return end;
}

Status Link::greet(size_t index, const LinkOptions& options) {
  transport::Channel& channel = channels_->at(index);
  wire::StreamHeader header;
  header.channel = static_cast<uint16_t>(index);
  header.channels = static_cast<uint16_t>(channels_->size());
  header.session = session_;
  if (index == 0) binding_ = TRY(SessionBinding::of(channel, session_));
  wire::Hello theirs;
  ends_.push_back(TRY(greet_destination(channel, header, binding_, options,
                                        make_hello(session_, wire::ROLE_SOURCE, channels_->size()), theirs)));
  if (index > 0) return {};
  for (const std::string& feature : theirs.features()) {
    if (std::find(std::begin(kFeatures), std::end(kFeatures), feature) != std::end(kFeatures))
      features_.push_back(feature);
  }
  return {};
}

bool Link::agreed(std::string_view feature) const {
  return std::find(features_.begin(), features_.end(), feature) != features_.end();
}

std::vector<wire::RecordWriter*> Link::writers() {
  std::vector<wire::RecordWriter*> all;
  for (LinkEnd& end : ends_) all.push_back(end.writer.get());
  return all;
}

Status Link::barrier() {
  TRY(fault_point("barrier"));
  wire::Barrier barrier;
  barrier.set_id(++barriers_);
  for (LinkEnd& end : ends_) {
    TRY(end.writer->write_message(wire::RecordType::kBarrier, barrier));
    TRY(end.writer->flush());
  }
  const auto ack = TRY(wire::parse<wire::Ack>(TRY(await(wire::RecordType::kAck))));
  if (ack.barrier() != barriers_)
    return fail(ErrorKind::kCorrupt, "wait for a barrier", peer_name(), "the peer acknowledged another one");
  return {};
}

std::string Link::local_address() const {
  const auto local = transport::Endpoint::local_of(channels_->control().fd());
  return local.ok() ? host_of(local.value()) : std::string();
}

std::string Link::peer_address() const {
  return host_of(channels_->control().peer());
}

Result<wire::Verdict::Value> ask_verdict(const LinkOptions& options, const wire::SessionId& session,
                                         const QueryKey& key) {
  const auto where = TRY(transport::parse_host_port(options.destination));
  bool reached = false;
  const auto channel = TRY(open_channel(where, options, std::chrono::seconds(2), reached));
  TRY(channel->set_read_timeout(std::min(kQuestionTimeout, options.dead_after)));
  wire::StreamHeader header;
  header.session = session;
  wire::RecordWriter writer(*channel, header);
  wire::RecordReader reader(*channel);
  TRY(writer.start());
  wire::Hello ours = make_hello(session, wire::ROLE_RESOLVER, 1);
  ours.set_proof(TRY(prove_query(key, *channel, wire::ROLE_RESOLVER, session)));
  TRY(writer.write_message(wire::RecordType::kHello, ours));
  wire::Query query;
  query.set_session(session.data(), session.size());
  TRY(writer.write_message(wire::RecordType::kQuery, query));
  TRY(writer.flush());
  TRY(reader.start());
  const auto hello = TRY(wire::parse<wire::Hello>(TRY(wire::expect(reader, wire::RecordType::kHello))));
  const auto verdict = TRY(wire::parse<wire::Verdict>(TRY(wire::expect(reader, wire::RecordType::kVerdict))));
  // A destination that lost all it knew cannot prove anything, and "aborted" is then the truth.
  if (verdict.value() == wire::Verdict::RUNNING || verdict.value() == wire::Verdict::LACKING)
    TRY(check_query(key, *channel, hello, session));
  return verdict.value();
}

}  // namespace godwit::migration
