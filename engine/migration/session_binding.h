// Binds the connections of one session to each other. Its secret is never sent: both ends of the control
// channel's TLS derive it from that connection (RFC 8446 section 7.5), for the session id. Every connection
// then proves in its hello that it knows the secret, for itself only: the proof covers a secret of that very
// connection, the index of the channel and who speaks. So a channel cannot be taken into another session,
// another place in its own, or be replayed, by whoever is authenticated as well.
// Place: between channel and hello, at both ends (docs/threat-model.md). Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/transport/channel.h"
#include "engine/wire/state.pb.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

/// What a later question about a session proves itself with. Plain sessions have none.
struct QueryKey {
  bool secure = false;
  transport::Secret key{};
};

class SessionBinding {
 public:
  /// Of plain channels: proves nothing and demands nothing.
  SessionBinding() = default;
  /// The session whose control channel this is, after its TLS handshake. Errors: Bug.
  static Result<SessionBinding> of(transport::Channel& control, const wire::SessionId& session);

  /// For the hello that `role` sends on `channel`; `header` says which channel it is. Errors: Bug.
  Result<std::string> prove(transport::Channel& channel, wire::Role role,
                            const wire::StreamHeader& header) const;
  /// Errors: Untrusted when the hello is not from the other end of this session, for this channel.
  Status check(transport::Channel& channel, const wire::Hello& hello, const wire::StreamHeader& header) const;

  [[nodiscard]] QueryKey query_key() const;

 private:
  bool secure_ = false;
  transport::Secret secret_{};
};

/// The same for questions, by a key that outlives the session.
Result<std::string> prove_query(const QueryKey& key, transport::Channel& channel, wire::Role role,
                                const wire::SessionId& session);
/// Errors: Untrusted.
Status check_query(const QueryKey& key, transport::Channel& channel, const wire::Hello& hello,
                   const wire::SessionId& session);

}  // namespace godwit::migration
