// The source's connection to a destination engine: N channels of one session, each with a writer and a
// reader. One thread uses it; cancel() is for any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/migration/link_options.h"
#include "engine/transport/channel_set.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/record_writer.h"
#include "engine/wire/state.pb.h"

namespace godwit::migration {

/// Features of this build that both ends must name to be used.
inline constexpr std::string_view kFeatures[] = {"xbzrle", "memory-objects", "guard-regions", "packed-pages",
                                                 "postcopy"};

class Link {
 public:
  /// Connects and greets on every channel. Errors: PeerGone, Timeout, Usage, Denied (not loopback and not
  /// insecure), Unsupported (another major version), Corrupt.
  static Result<std::unique_ptr<Link>> connect(const LinkOptions& options);

  [[nodiscard]] wire::RecordWriter& control() { return *ends_.front().writer; }
  [[nodiscard]] std::vector<wire::RecordWriter*> writers();
  [[nodiscard]] size_t channels() const { return ends_.size(); }
  [[nodiscard]] const wire::SessionId& session() const { return session_; }
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
  struct End {
    std::unique_ptr<wire::RecordWriter> writer;
    std::unique_ptr<wire::RecordReader> reader;
  };
  Link() = default;
  Status greet(size_t index, const LinkOptions& options);

  wire::SessionId session_{};
  std::unique_ptr<transport::ChannelSet> channels_;
  std::vector<End> ends_;
  std::vector<std::string> features_;  ///< named by both
  uint32_t barriers_ = 0;
};

/// When nobody says it: each channel costs a thread here and one at the peer, beside the process that runs
/// on.
size_t choose_channels();

/// Plain TCP leaves this host only when the person said so. Errors: Denied naming --insecure.
Status require_secure(const transport::Endpoint& endpoint, bool insecure);

/// A later connection that only asks what became of `session`. Errors: PeerGone, Timeout when there is no
/// answer.
Result<wire::Verdict::Value> ask_verdict(const LinkOptions& options, const wire::SessionId& session);

wire::Hello make_hello(const wire::SessionId& session, wire::Role role, size_t channels);

}  // namespace godwit::migration
