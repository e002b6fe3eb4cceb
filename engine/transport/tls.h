// TLS 1.3 without a socket: bytes in, bytes out. Channel owns the socket and calls this; nothing here blocks,
// so the lock that both directions share is never held while a peer keeps somebody waiting.
// Thread-safe: one thread may seal while another opens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/transport/credentials.h"

struct ssl_st;
struct bio_st;
struct x509_store_ctx_st;

namespace godwit::transport {

enum class TlsRole : uint8_t { kInvalid = 0, kClient, kServer };

/// 32 bytes that only the two ends of something know.
using Secret = std::array<std::byte, 32>;

class Tls {
 public:
  /// `peer` is for errors. Errors: System.
  static Result<std::unique_ptr<Tls>> create(std::shared_ptr<const Credentials> credentials, TlsRole role,
                                             std::string peer);
  ~Tls();
  Tls(const Tls&) = delete;
  Tls& operator=(const Tls&) = delete;

  /// Takes what came from the front of `received` and appends what has to be sent, also when it fails. True
  /// once the peer is authenticated; what is left of `received` is for open(). Errors: Untrusted, saying
  /// which side does not accept what.
  Result<bool> handshake(std::span<const std::byte>& received, std::vector<std::byte>& out);

  [[nodiscard]] TlsRole role() const { return role_; }

  /// Appends `plain` as records. Errors: System.
  Status seal(std::span<const std::byte> plain, std::vector<std::byte>& out);
  /// Opens what `received` holds, up to the size of `into`; takes what it used from the front of `received`.
  /// 0: more must come first. Errors: Corrupt (a record was changed, left out, repeated or reordered),
  /// PeerGone (the peer has closed in order), Untrusted (the peer refused our credentials).
  Result<size_t> open(std::span<const std::byte>& received, std::span<std::byte> into);
  /// Appends the notice that nothing more will be sealed.
  void close(std::vector<std::byte>& out);

  /// RFC 8446 section 7.5: a secret of this connection, for `context`. After the handshake. Errors: Bug.
  Result<Secret> exporter(std::string_view label, std::span<const std::byte> context);
  /// The subject of the peer's certificate, or "the holder of the pre-shared key".
  [[nodiscard]] std::string peer_identity() const;
  /// New keys after so many bytes; before the first seal(). For tests.
  void set_rekey_after(uint64_t bytes) { rekey_after_ = bytes; }
  [[nodiscard]] uint64_t rekeyed() const { return rekeyed_; }

 private:
  struct Free {
    void operator()(ssl_st* ssl) const;
  };
  /// What our own verification said against the peer's certificate.
  struct Objection {
    int code = 0;
    std::string subject;
    std::string not_after;
  };
  friend struct TlsCallbacks;

  Tls(std::shared_ptr<const Credentials> credentials, TlsRole role, std::string peer);
  Error explain(const char* operation);
  Error explain_objection(const char* operation) const;
  [[nodiscard]] Error refused(const char* operation, std::string what, std::string remedy) const;
  Status check_peer() const;
  void note_failure(int done);
  Status judge_first_bytes(std::span<const std::byte> received);
  Status renew_keys();

  const std::shared_ptr<const Credentials> credentials_;
  const TlsRole role_;
  const std::string peer_;
  std::mutex mutex_;  ///< over everything below
  std::unique_ptr<ssl_st, Free> ssl_;
  std::span<const std::byte> incoming_;
  std::vector<std::byte> outgoing_;
  Objection objection_;
  bool greeted_ = false;         ///< the peer's first bytes were TLS
  std::optional<Error> broken_;  ///< what the next open() says
  uint64_t sealed_ = 0;          ///< bytes since the last new keys
  // RFC 8446 section 5.5: AES-GCM is good for 2^24.5 full records of one key, which are 360 GiB.
  uint64_t rekey_after_ = uint64_t{64} << 30;
  uint64_t rekeyed_ = 0;
};

/// HMAC-SHA256 of the parts, one after the other; fixed lengths keep them apart.
Secret keyed_hash(const Secret& key, std::span<const std::span<const std::byte>> parts);
/// In a time that does not depend on the contents.
bool equal_secrets(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace godwit::transport
