#include "engine/migration/receiver.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>

#include "engine/base/kernel_features.h"
#include "engine/base/log.h"
#include "engine/base/units.h"
#include "engine/base/warm_memory.h"
#include "engine/migration/dead_commits.h"
#include "engine/migration/journal.h"
#include "engine/migration/link.h"
#include "engine/migration/receive_session.h"
#include "engine/migration/serving_link.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

constexpr Nanos kGreetingTimeout = std::chrono::seconds(10);
constexpr Nanos kSilence =
    std::chrono::minutes(10);  ///< a session that sends nothing for so long is given up
constexpr uint16_t kMostChannels = 64;
constexpr size_t kMostUnread = 256_KiB;  ///< of somebody who is turned away

/// Says why, so that it stands on both hosts. What the peer has sent is read first: a connection that is
/// closed over unread bytes is reset, and the reason lost.
void turn_away(transport::Channel& channel, const Error& error) {
  wire::RecordWriter writer(channel, wire::StreamHeader{});
  if (!writer.start().ok() || !writer.write_message(wire::RecordType::kAbort, wire::to_message(error)).ok() ||
      !writer.flush().ok() || !channel.shutdown_write().ok() ||
      !channel.set_read_timeout(std::chrono::seconds(1)).ok())
    return;
  std::byte unread[1_KiB];
  for (size_t read = 0; read < kMostUnread && channel.read(unread).ok(); read += sizeof unread) {
  }
}

}  // namespace

Status receive(ReceiveOptions options) {
  return TRY(Receiver::create(std::move(options)))->serve();
}

Result<std::unique_ptr<Receiver>> Receiver::create(ReceiveOptions options) {
  clear_dead_commits();
  // ORDER: probing forks a child, which would hold the listener for a moment longer than an engine that is
  // killed; the next one could not listen.
  (void)kernel_features();
  warm_memory();  // before the sessions' threads, which would have heaps of their own; again after each fork
  auto listener = TRY(transport::Listener::create(options.listen));
  TRY(require_secure(listener.local(), options.credentials != nullptr, options.insecure));
  std::unique_ptr<Receiver> made(new Receiver(std::move(options), std::move(listener)));
  if (made->options_.on_listening) {
    std::string text = made->listener_.local().text();
    text.resize(text.rfind(':'));
    made->options_.on_listening(text, made->listener_.port());
  }
  return made;
}

Receiver::Receiver(ReceiveOptions options, transport::Listener listener)
    : options_(std::move(options)),
      listener_(std::move(listener)),
      lobby_([this](transport::Channel& channel, Lobby::Visit& visit) { return handle(channel, visit); },
             options_.on_failed) {}

Receiver::~Receiver() = default;

Status Receiver::serve() {
  while (!done_ && !(options_.cancelled != nullptr && options_.cancelled->load())) {
    auto channel = listener_.accept(std::chrono::milliseconds(200));
    reap_children();
    if (channel.ok()) {
      lobby_.admit(channel.take());
      continue;
    }
    lobby_.sweep();
    const ErrorKind kind = channel.error().kind;
    if (kind != ErrorKind::kTimeout && kind != ErrorKind::kRetry && kind != ErrorKind::kPeerGone)
      return channel.take_error();
  }
  lobby_.finish();
  const std::lock_guard lock(mutex_);
  return std::move(outcome_);
}

/// Processes that were rebuilt here are children of this engine until it ends.
void Receiver::reap_children() {
  const std::lock_guard lock(mutex_);
  for (const pid_t ended : tracee::reap(children_)) std::erase(children_, ended);
}

Status Receiver::handle(transport::Channel& channel, Lobby::Visit& visit) {
  // Whatever it is, the first byte tells whether the two sides agree about TLS.
  const bool tls = TRY(channel.begins_with_tls());
  if (tls != (options_.credentials != nullptr)) {
    Error error =
        tls ? fail(ErrorKind::kUntrusted, "greet a source engine: it speaks TLS", channel.peer_name(),
                   "start `godwit receive` with --psk-file, or --tls-ca, --tls-cert and --tls-key")
            : fail(ErrorKind::kUntrusted, "greet a source engine: it speaks plain TCP", channel.peer_name(),
                   "this destination accepts TLS only: give the source --psk-file, or --tls-ca, "
                   "--tls-cert and --tls-key");
    turn_away(channel, error);
    return error;
  }
  if (tls) TRY(channel.start_tls(options_.credentials, transport::TlsRole::kServer, LobbyLimits{}.patience));
  TRY(channel.set_read_timeout(kGreetingTimeout));
  wire::RecordReader reader(channel);
  Status greeted = greet(channel, reader, visit);
  // A peer of another version can still read our header, and with it which version we speak.
  if (!greeted.ok() && greeted.error().kind != ErrorKind::kPeerGone) turn_away(channel, greeted.error());
  return greeted;
}

/// Its header and its hello, and then what it is here for.
Status Receiver::greet(transport::Channel& channel, wire::RecordReader& reader, Lobby::Visit& visit) {
  if (channel.is_secure()) TRY(visit.become_known());
  const auto header = TRY(reader.start());
  const auto hello = TRY(wire::parse<wire::Hello>(TRY(wire::expect(reader, wire::RecordType::kHello))));
  if (!channel.is_secure()) TRY(visit.become_known());
  if (hello.role() == wire::ROLE_RESOLVER) return answer_query(channel, reader, hello);
  if (hello.role() != wire::ROLE_SOURCE || header.channels == 0 || header.channels > kMostChannels)
    return fail(ErrorKind::kCorrupt, "greet a source engine", channel.peer_name(),
                "it does not speak as a source");
  TRY(channel.set_read_timeout(kSilence));
  TRY(channel.set_dead_after(options_.dead_after));
  if (header.channel == 0) return open_session(channel, reader, hello);
  const auto session = find(header.session);
  if (!session)
    return fail(ErrorKind::kCorrupt, "join a session", channel.peer_name(), "there is no such session");
  const auto serving = hello.options().find(ServingLink::kOption);
  if (serving != hello.options().end()) {
    TRY(session->admit_serving(channel, hello, header));
    // The source connects again, and learns then what is lacking.
    Status served = session->serve(channel, reader, serving->second == "urgent");
    if (!served.ok()) log_debug("{}", served.error().message());
    return {};
  }
  TRY(session->admit(channel, hello, header));
  Status joined = session->join(channel, reader, header.channel);
  if (!joined.ok()) log_debug("{}", joined.error().message());  // the session tells it
  return {};
}

std::shared_ptr<ReceiveSession> Receiver::find(const wire::SessionId& id) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

Status Receiver::open_session(transport::Channel& channel, wire::RecordReader& reader,
                              const wire::Hello& hello) {
  const wire::StreamHeader header = reader.header();
  const auto binding = TRY(SessionBinding::of(channel, header.session));
  TRY(binding.check(channel, hello, header));
  auto session = std::make_shared<ReceiveSession>(options_, header, binding);
  {
    // A verdict that stands in the journal stays: whoever asks for it must not get another session's.
    const std::lock_guard lock(mutex_);
    if (read_query_key(header.session) || !sessions_.emplace(header.session, session).second)
      return fail(ErrorKind::kCorrupt, "open a session", channel.peer_name(),
                  "a session of this name exists, or has run here");
  }
  run_session(channel, reader, session);
  return {};
}

void Receiver::run_session(transport::Channel& channel, wire::RecordReader& reader,
                           const std::shared_ptr<ReceiveSession>& session) {
  Status ended = session->run(channel, reader);
  const Status told = ended.ok() ? session->part(channel, reader) : ended.error();
  if (!told.ok() && options_.on_failed) options_.on_failed(told.error());
  if (ended.ok()) session->await_resident();
  const bool counts = ended.ok() || session->had_inventory();
  const std::lock_guard lock(mutex_);
  if (ended.ok()) children_.insert(children_.end(), session->children().begin(), session->children().end());
  sessions_.erase(reader.header().session);
  if (options_.once && counts) {
    if (!ended.ok()) outcome_ = ended.take_error();
    done_ = true;
  }
}

Status Receiver::answer_query(transport::Channel& channel, wire::RecordReader& reader,
                              const wire::Hello& hello) {
  const wire::SessionId id = reader.header().session;
  TRY(wire::expect(reader, wire::RecordType::kQuery));
  const auto session = find(id);
  // ORDER: a question decides about a session that has not committed, so first who asks.
  const QueryKey key = session ? session->query_key() : read_query_key(id).value_or(QueryKey{});
  TRY(check_query(key, channel, hello, id));
  wire::Verdict verdict;
  verdict.set_value(session ? session->verdict() : read_verdict(id));
  verdict.set_session(id.data(), id.size());
  wire::RecordWriter writer(channel, reader.header());
  TRY(writer.start());
  wire::Hello ours = make_hello(id, wire::ROLE_DESTINATION, 1);
  ours.set_proof(TRY(prove_query(key, channel, wire::ROLE_DESTINATION, id)));
  TRY(writer.write_message(wire::RecordType::kHello, ours));
  TRY(writer.write_message(wire::RecordType::kVerdict, verdict));
  return writer.flush();
}

}  // namespace godwit::migration
