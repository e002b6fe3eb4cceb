#include "engine/migration/session_binding.h"

#include <fmt/format.h>

#include <array>

namespace godwit::migration {
namespace {

using transport::Secret;
using Bytes = std::span<const std::byte>;

constexpr std::string_view kSessionLabel = "EXPORTER-godwit-session";
constexpr std::string_view kChannelLabel = "EXPORTER-godwit-channel";

Bytes bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string text_of(const Secret& secret) {
  return {reinterpret_cast<const char*>(secret.data()), secret.size()};
}

/// Who speaks, on which of how many channels: 5 bytes.
std::array<std::byte, 5> place(wire::Role role, uint16_t channel, uint16_t channels) {
  return {static_cast<std::byte>(role), static_cast<std::byte>(channel & 0xff),
          static_cast<std::byte>(channel >> 8), static_cast<std::byte>(channels & 0xff),
          static_cast<std::byte>(channels >> 8)};
}

Result<std::string> proof(const Secret& secret, transport::Channel& channel, std::span<const std::byte> who,
                          const wire::SessionId& session) {
  const Secret own = TRY(channel.exporter(kChannelLabel, std::as_bytes(std::span(session))));
  const Bytes parts[] = {who, own};
  return text_of(transport::keyed_hash(secret, parts));
}

Status compare(const std::string& expected, const wire::Hello& hello, const transport::Channel& channel,
               const char* what) {
  if (transport::equal_secrets(bytes_of(expected), bytes_of(hello.proof()))) return {};
  return fail(ErrorKind::kUntrusted, what,
              fmt::format("{} ({})", channel.peer_name(), channel.peer_identity()),
              "it has not proven that it belongs to this session; nothing was taken from it");
}

}  // namespace

Result<SessionBinding> SessionBinding::of(transport::Channel& control, const wire::SessionId& session) {
  SessionBinding made;
  if (!control.is_secure()) return made;
  made.secret_ = TRY(control.exporter(kSessionLabel, std::as_bytes(std::span(session))));
  made.secure_ = true;
  return made;
}

Result<std::string> SessionBinding::prove(transport::Channel& channel, wire::Role role,
                                          const wire::StreamHeader& header) const {
  if (!secure_) return std::string();
  return proof(secret_, channel, place(role, header.channel, header.channels), header.session);
}

Status SessionBinding::check(transport::Channel& channel, const wire::Hello& hello,
                             const wire::StreamHeader& header) const {
  // A session that began in the open has nothing that a stranger could not know, and the other way round.
  if (secure_ != channel.is_secure())
    return fail(ErrorKind::kUntrusted, "join a session", channel.peer_name(),
                "a plain and an encrypted connection cannot belong together");
  if (!secure_) return {};
  return compare(TRY(prove(channel, hello.role(), header)), hello, channel, "join a session");
}

QueryKey SessionBinding::query_key() const {
  constexpr std::string_view kQuery = "query";
  const Bytes parts[] = {bytes_of(kQuery)};
  return secure_ ? QueryKey{true, transport::keyed_hash(secret_, parts)} : QueryKey{};
}

Result<std::string> prove_query(const QueryKey& key, transport::Channel& channel, wire::Role role,
                                const wire::SessionId& session) {
  if (!key.secure || !channel.is_secure()) return std::string();
  return proof(key.key, channel, place(role, 0, 1), session);
}

Status check_query(const QueryKey& key, transport::Channel& channel, const wire::Hello& hello,
                   const wire::SessionId& session) {
  if (!key.secure) return {};
  if (!channel.is_secure())
    return fail(ErrorKind::kUntrusted, "speak about a session", channel.peer_name(),
                "the session was encrypted; this connection is not");
  return compare(TRY(prove_query(key, channel, hello.role(), session)), hello, channel,
                 "speak about a session");
}

}  // namespace godwit::migration
