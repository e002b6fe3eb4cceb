// The source's connection to a destination engine: N channels of one session, each with a writer and a
// reader. One thread uses it; cancel() is for any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/migration/link_options.h"
#include "engine/migration/session_binding.h"
#include "engine/transport/channel_set.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/record_writer.h"
#include "engine/wire/state.pb.h"

namespace godwit::migration {

/// Features of this build that both ends must name to be used.
inline constexpr std::string_view kFeatures[] = {"xbzrle", "memory-objects", "guard-regions", "packed-pages",
                                                 "postcopy"};

/// Both directions of a connection to a destination.
struct LinkEnd {
  std::unique_ptr<wire::RecordWriter> writer;
  std::unique_ptr<wire::RecordReader> reader;
};

class Link {
 public:
  /// Connects, authenticates and greets on every channel. Errors: PeerGone, Timeout, Usage, Untrusted (also:
  /// not loopback, no credentials and not insecure), Unsupported (another major version), Corrupt.
  static Result<std::unique_ptr<Link>> connect(const LinkOptions& options);

  [[nodiscard]] wire::RecordWriter& control() { return *ends_.front().writer; }
  [[nodiscard]] std::vector<wire::RecordWriter*> writers();
  [[nodiscard]] size_t channels() const { return ends_.size(); }
  [[nodiscard]] const wire::SessionId& session() const { return session_; }
  /// What further connections of the session prove themselves by.
  [[nodiscard]] const SessionBinding& binding() const { return binding_; }
  /// For ask_verdict(), later.
  [[nodiscard]] QueryKey query_key() const { return binding_.query_key(); }
  [[nodiscard]] bool agreed(std::string_view feature) const;

  /// The next record of the control channel, which must be a `type`. What the peer reports as its failure
  /// becomes the error. Errors: PeerGone, Timeout, Corrupt, and the peer's own.
  Result<wire::Record> await(wire::RecordType type) { return wire::expect(*ends_.front().reader, type); }
  /// Any next record.
  Result<wire::Record> next() { return ends_.front().reader->next(); }
  /// Everything sent so far on all channels is installed at the peer.
  Status barrier();

  void set_bandwidth(uint64_t bytes_per_second) { channels_->set_bandwidth(bytes_per_second); }
  void cancel() { channels_->cancel(); }
  /// It, not the link, is what the writer of that channel waits for.
  [[nodiscard]] bool is_peer_behind(size_t channel) { return channels_->at(channel).is_peer_behind(); }
  [[nodiscard]] std::string local_address() const;  ///< of the control channel, without the port
  [[nodiscard]] std::string peer_address() const;
  [[nodiscard]] const std::string& peer_name() const { return channels_->control().peer_name(); }
  [[nodiscard]] uint64_t bytes_sent() const { return channels_->bytes_sent(); }

 private:
  Link() = default;
  static Result<std::unique_ptr<Link>> connect_once(const LinkOptions& options, bool& reached);
  Status greet(size_t index, const LinkOptions& options);

  wire::SessionId session_{};
  SessionBinding binding_;
  std::unique_ptr<transport::ChannelSet> channels_;
  std::vector<LinkEnd> ends_;
  std::vector<std::string> features_;  ///< named by both
  uint32_t barriers_ = 0;
};

/// A connection, authenticated if there are credentials. `reached`: the destination accepted it. Errors:
/// PeerGone, Timeout, Untrusted.
Result<std::unique_ptr<transport::Channel>> open_channel(const transport::HostPort& where,
                                                         const LinkOptions& options, Nanos timeout,
                                                         bool& reached);

/// Says `ours`, with its proof, on a connection of the session, and hears the destination's hello in
/// `theirs`. The connection then waits for `options.answer_timeout()`. Errors: PeerGone, Timeout, Untrusted,
/// Corrupt.
Result<LinkEnd> greet_destination(transport::Channel& channel, const wire::StreamHeader& header,
                                  const SessionBinding& binding, const LinkOptions& options, wire::Hello ours,
                                  wire::Hello& theirs);

/// When nobody says it: each channel costs a thread here and one at the peer, beside the process that runs
/// on.
size_t choose_channels();

/// Plain TCP leaves this host only when the person said so. Errors: Untrusted naming what may be given.
Status require_secure(const transport::Endpoint& endpoint, bool has_credentials, bool insecure);

/// A later connection that only asks what became of `session`. That the process runs is believed only of a
/// peer that proves it by `key`. Errors: PeerGone, Timeout when there is no answer, Untrusted.
Result<wire::Verdict::Value> ask_verdict(const LinkOptions& options, const wire::SessionId& session,
                                         const QueryKey& key);

wire::Hello make_hello(const wire::SessionId& session, wire::Role role, size_t channels);

}  // namespace godwit::migration
