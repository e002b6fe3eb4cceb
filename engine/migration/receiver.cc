#include "engine/migration/receiver.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>

#include "engine/base/kernel_features.h"
#include "engine/base/log.h"
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
    std::chrono::minutes(10);      ///< a session that sends nothing for so long is given up
constexpr size_t kMaxGuests = 64;  ///< connections at once

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
  TRY(require_secure(listener.local(), options.insecure));
  std::unique_ptr<Receiver> made(new Receiver(std::move(options), std::move(listener)));
  if (made->options_.on_listening) {
    std::string text = made->listener_.local().text();
    text.resize(text.rfind(':'));
    made->options_.on_listening(text, made->listener_.port());
  }
  return made;
}

Receiver::~Receiver() {
  reap_guests(true);
}

Status Receiver::serve() {
  while (!done_ && !(options_.cancelled != nullptr && options_.cancelled->load())) {
    auto channel = listener_.accept(std::chrono::milliseconds(200));
    reap_guests(false);
    reap_children();
    if (channel.ok()) {
      if (guests_.size() < kMaxGuests) welcome(channel.take());
      continue;
    }
    const ErrorKind kind = channel.error().kind;
    if (kind != ErrorKind::kTimeout && kind != ErrorKind::kRetry && kind != ErrorKind::kPeerGone)
      return channel.take_error();
  }
  reap_guests(true);
  const std::lock_guard lock(mutex_);
  return std::move(outcome_);
}

/// Processes that were rebuilt here are children of this engine until it ends.
void Receiver::reap_children() {
  const std::lock_guard lock(mutex_);
  for (const pid_t ended : tracee::reap(children_)) std::erase(children_, ended);
}

void Receiver::reap_guests(bool all) {
  for (auto guest = guests_.begin(); guest != guests_.end();) {
    if (!all && !guest->finished->load()) {
      ++guest;
      continue;
    }
    guest->thread.join();
    guest = guests_.erase(guest);
  }
}

void Receiver::welcome(std::unique_ptr<transport::Channel> channel) {
  auto finished = std::make_shared<std::atomic<bool>>(false);
  guests_.push_back({std::thread([this, finished, owned = std::move(channel)]() mutable {
                       Status handled = handle(std::move(owned));
                       if (!handled.ok()) log_debug("{}", handled.error().message());
                       finished->store(true);
                     }),
                     finished});
}

Status Receiver::handle(std::unique_ptr<transport::Channel> channel) {
  TRY(channel->set_read_timeout(kGreetingTimeout));
  auto reader = std::make_unique<wire::RecordReader>(*channel);
  auto header = reader->start();
  if (!header.ok()) {
    // A peer of another version can still read our header, and with it which version we speak.
    wire::RecordWriter writer(*channel, wire::StreamHeader{});
    (void)writer.start();
    (void)writer.write_message(wire::RecordType::kAbort, wire::to_message(header.error()));
    (void)writer.flush();
    if (options_.on_failed) options_.on_failed(header.error());
    return header.take_error();
  }
  const auto hello = TRY(wire::parse<wire::Hello>(TRY(wire::expect(*reader, wire::RecordType::kHello))));
  if (hello.role() == wire::ROLE_RESOLVER) return answer_query(*channel, *reader);
  if (hello.role() != wire::ROLE_SOURCE || header.value().channels == 0 || header.value().channels > 64)
    return fail(ErrorKind::kCorrupt, "greet a source engine", channel->peer_name(),
                "it does not speak as a source");
  TRY(channel->set_read_timeout(kSilence));
  TRY(channel->set_dead_after(options_.dead_after));
  if (header.value().channel == 0) return run_session(std::move(channel), std::move(reader));
  const auto session = find(header.value().session);
  if (!session)
    return fail(ErrorKind::kCorrupt, "join a session", channel->peer_name(), "there is no such session");
  const auto serving = hello.options().find(ServingLink::kOption);
  if (serving != hello.options().end())
    return session->serve(*channel, *reader, header.value().channel, serving->second == "urgent");
  return session->join(*channel, *reader, header.value().channel);
}

std::shared_ptr<ReceiveSession> Receiver::find(const wire::SessionId& id) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

Status Receiver::run_session(std::unique_ptr<transport::Channel> channel,
                             std::unique_ptr<wire::RecordReader> reader) {
  const wire::StreamHeader header = reader->header();
  auto session = std::make_shared<ReceiveSession>(options_, header);
  {
    const std::lock_guard lock(mutex_);
    if (!sessions_.emplace(header.session, session).second)
      return fail(ErrorKind::kCorrupt, "open a session", channel->peer_name(),
                  "a session of this name exists");
  }
  Status ended = session->run(*channel, *reader);
  if (ended.ok()) {
    session->part(*channel, *reader);
    session->await_resident();
  } else if (options_.on_failed) {
    options_.on_failed(ended.error());
  }
  const bool counts = ended.ok() || session->had_inventory();
  const std::lock_guard lock(mutex_);
  if (ended.ok()) children_.insert(children_.end(), session->children().begin(), session->children().end());
  sessions_.erase(header.session);
  if (options_.once && counts) {
    if (!ended.ok()) outcome_ = ended.error();
    done_ = true;
  }
  return ended;
}

Status Receiver::answer_query(transport::Channel& channel, wire::RecordReader& reader) {
  const wire::SessionId id = reader.header().session;
  TRY(wire::expect(reader, wire::RecordType::kQuery));
  const auto session = find(id);
  wire::Verdict verdict;
  verdict.set_value(session ? session->verdict() : read_verdict(id));
  verdict.set_session(id.data(), id.size());
  wire::RecordWriter writer(channel, reader.header());
  TRY(writer.start());
  TRY(writer.write_message(wire::RecordType::kHello, make_hello(id, wire::ROLE_DESTINATION, 1)));
  TRY(writer.write_message(wire::RecordType::kVerdict, verdict));
  return writer.flush();
}

}  // namespace godwit::migration
