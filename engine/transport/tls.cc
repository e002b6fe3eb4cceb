#include "engine/transport/tls.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <cstring>

#include "engine/transport/credentials_store.h"
#include "engine/transport/tls_callbacks.h"

namespace godwit::transport {

namespace {

/// Every key has this name; which key it is, the binder proves.
constexpr std::string_view kPskIdentity = "godwit/1";
constexpr unsigned char kAes128GcmSha256[] = {0x13, 0x01};
/// A plain stream begins with this (docs/wire-format.md); no TLS record does.
constexpr std::string_view kPlainMagic = "GODWIT";
constexpr char kAlertRecord = 21, kHandshakeRecord = 22;
constexpr size_t kLongestSubject = 200;  // of what a stranger calls itself

std::string text_of(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  std::string text(data, static_cast<size_t>(std::max(size, 0L)));
  BIO_free(memory);
  return text;
}

std::string text_of(const ASN1_TIME* time) {
  BIO* memory = BIO_new(BIO_s_mem());
  ASN1_TIME_print(memory, time);
  return text_of(memory);
}

/// What the other side says by an alert, in words; nullptr for what needs none of its own.
const char* meaning_of_alert(int reason) {
  switch (reason) {
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return "it says that our certificate has expired: make a new one with `godwit keygen --ca DIR --host "
             "NAME`, or set the clocks right";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
      return "it does not know the CA of our certificate: use certificates of one CA on both hosts";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return "it wants a certificate: give it --tls-ca, --tls-cert and --tls-key, not --psk-file";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
      return "it does not accept our certificate: the reason stands in its own words on that host";
    case SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
      return "it has another pre-shared key: bring the same file to both hosts";
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
      return "it accepts other credentials: give both sides --psk-file, or both certificates";
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      return "it does not speak TLS 1.3";
    default:
      return nullptr;
  }
}

/// What our own side found, in words.
const char* meaning_of_reason(int reason) {
  switch (reason) {
    case SSL_R_BINDER_DOES_NOT_VERIFY:
      return "it has another pre-shared key: bring the same file to both hosts";
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return "it shows no certificate: give it --tls-ca, --tls-cert and --tls-key, not --psk-file";
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_BAD_PSK:
      return "it does not have the pre-shared key: give both sides the same --psk-file";
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
      return "it does not speak TLS 1.3";
    default:
      return nullptr;
  }
}

}  // namespace

// ---- what OpenSSL calls
// ------------------------------------------------------------------------------------------

struct TlsCallbacks {
  static int write(BIO* bio, const char* data, size_t size, size_t* written) {
    Tls& tls = *static_cast<Tls*>(BIO_get_data(bio));
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    tls.outgoing_.insert(tls.outgoing_.end(), bytes, bytes + size);
    *written = size;
    return 1;
  }

  static int read(BIO* bio, char* data, size_t size, size_t* got) {
    Tls& tls = *static_cast<Tls*>(BIO_get_data(bio));
    BIO_clear_retry_flags(bio);
    *got = std::min(size, tls.incoming_.size());
    if (*got == 0) {
      BIO_set_retry_read(bio);
      return 0;
    }
    std::memcpy(data, tls.incoming_.data(), *got);
    tls.incoming_ = tls.incoming_.subspan(*got);
    return 1;
  }

  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  static BIO_METHOD* method() {
    static BIO_METHOD* const made = [] {
      BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "godwit bytes");
      BIO_meth_set_write_ex(m, write);
      BIO_meth_set_read_ex(m, read);
      BIO_meth_set_ctrl(m, control);
      BIO_meth_set_create(m, [](BIO* bio) {
        BIO_set_init(bio, 1);
        return 1;
      });
      return m;
    }();
    return made;
  }

  static int verify(int ok, X509_STORE_CTX* check) {
    if (ok == 1) return 1;
    const auto* ssl =
        static_cast<const SSL*>(X509_STORE_CTX_get_ex_data(check, SSL_get_ex_data_X509_STORE_CTX_idx()));
    Tls& tls = *static_cast<Tls*>(SSL_get_app_data(ssl));
    const X509* certificate = X509_STORE_CTX_get0_cert(check);
    tls.objection_.code = X509_STORE_CTX_get_error(check);
    if (certificate != nullptr) {
      tls.objection_.subject = subject_of(certificate);
      tls.objection_.not_after = text_of(X509_get0_notAfter(certificate));
    }
    return 0;
  }

  static SSL_SESSION* make_psk(const Tls& tls) {
    const std::vector<unsigned char>& key = tls.credentials_->psk;
    SSL_SESSION* session = SSL_SESSION_new();
    const SSL_CIPHER* cipher = SSL_CIPHER_find(tls.ssl_.get(), kAes128GcmSha256);
    if (session == nullptr || cipher == nullptr ||
        SSL_SESSION_set1_master_key(session, key.data(), key.size()) != 1 ||
        SSL_SESSION_set1_id_context(session, kSessionContext, sizeof kSessionContext) != 1 ||
        SSL_SESSION_set_cipher(session, cipher) != 1 ||
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) != 1) {
      SSL_SESSION_free(session);
      return nullptr;
    }
    return session;
  }

  static int use_psk(SSL* ssl, const EVP_MD* digest, const unsigned char** id, size_t* id_size,
                     SSL_SESSION** session) {
    *id = reinterpret_cast<const unsigned char*>(kPskIdentity.data());
    *id_size = kPskIdentity.size();
    *session = nullptr;
    // After a HelloRetryRequest with another hash there is no key for it.
    if (digest != nullptr && EVP_MD_get_type(digest) != NID_sha256) return 1;
    *session = make_psk(*static_cast<Tls*>(SSL_get_app_data(ssl)));
    return *session != nullptr ? 1 : 0;
  }

  static int find_psk(SSL* ssl, const unsigned char* id, size_t id_size, SSL_SESSION** session) {
    *session = nullptr;
    if (std::string_view(reinterpret_cast<const char*>(id), id_size) != kPskIdentity) return 1;
    *session = make_psk(*static_cast<Tls*>(SSL_get_app_data(ssl)));
    return *session != nullptr ? 1 : 0;
  }
};

void install_callbacks(SSL_CTX* context, bool psk) {
  // With a key alone nothing is trusted by certificate: a peer that shows one is refused.
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, TlsCallbacks::verify);
  if (!psk) return;
  SSL_CTX_set_psk_use_session_callback(context, TlsCallbacks::use_psk);
  SSL_CTX_set_psk_find_session_callback(context, TlsCallbacks::find_psk);
}

std::string subject_of(const X509* certificate) {
  BIO* memory = BIO_new(BIO_s_mem());
  X509_NAME_print_ex(memory, X509_get_subject_name(certificate), 0, XN_FLAG_ONELINE & ~ASN1_STRFLGS_ESC_MSB);
  std::string text = text_of(memory);
  if (text.size() > kLongestSubject) text.resize(kLongestSubject);
  return text;
}

// ---- Tls
// ---------------------------------------------------------------------------------------------------------

Tls::Tls(std::shared_ptr<const Credentials> credentials, TlsRole role, std::string peer)
    : credentials_(std::move(credentials)), role_(role), peer_(std::move(peer)) {}
Tls::~Tls() = default;

void Tls::Free::operator()(ssl_st* ssl) const {
  SSL_free(ssl);
}

Result<std::unique_ptr<Tls>> Tls::create(std::shared_ptr<const Credentials> credentials, TlsRole role,
                                         std::string peer) {
  std::unique_ptr<Tls> made(new Tls(std::move(credentials), role, std::move(peer)));
  made->ssl_.reset(SSL_new(made->credentials_->context.get()));
  BIO* bio = BIO_new(TlsCallbacks::method());
  if (!made->ssl_ || bio == nullptr) {
    BIO_free(bio);
    return fail(ErrorKind::kSystem, "set up TLS", made->peer_, drain_openssl_errors());
  }
  BIO_set_data(bio, made.get());
  SSL_set_bio(made->ssl_.get(), bio, bio);
  SSL_set_app_data(made->ssl_.get(), made.get());
  if (role == TlsRole::kClient)
    SSL_set_connect_state(made->ssl_.get());
  else
    SSL_set_accept_state(made->ssl_.get());
  return made;
}

Error Tls::refused(const char* operation, std::string what, std::string remedy) const {
  return fail(ErrorKind::kUntrusted, fmt::format("{}: {}", operation, what), peer_, std::move(remedy));
}

Error Tls::explain_objection(const char* operation) const {
  const std::string who = fmt::format("the certificate {} of the other engine", objection_.subject);
  switch (objection_.code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return refused(operation, fmt::format("{} has expired, {}", who, objection_.not_after),
                     "give that host a new one with `godwit keygen --ca DIR --host NAME`, or set the clocks "
                     "right");
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return refused(operation, fmt::format("{} is not valid yet", who),
                     "set the clocks of both hosts right");
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      if (!credentials_->psk.empty())
        return refused(operation, fmt::format("it shows a certificate ({})", objection_.subject),
                       "this side has a pre-shared key: give both sides --psk-file, or both certificates");
      return refused(operation, fmt::format("{} is not signed by our CA ({})", who, credentials_->ca_path),
                     "use certificates of one CA on both hosts");
    default:
      return refused(operation, fmt::format("{}: {}", who, X509_verify_cert_error_string(objection_.code)),
                     "give that host a certificate that holds");
  }
}

/// The oldest entry of OpenSSL's queue tells what happened; the others where it was noticed.
Error Tls::explain(const char* operation) {
  const unsigned long code = ERR_peek_error();
  const int reason = ERR_GET_REASON(code);
  const std::string words = drain_openssl_errors();
  if (objection_.code != 0) return explain_objection(operation);
  if (const char* meaning = meaning_of_alert(reason))
    return refused(operation, "the other engine refuses us", meaning);
  if (const char* meaning = meaning_of_reason(reason)) return refused(operation, words, meaning);
  return refused(operation, words, "do both sides run godwit, with the same kind of credentials?");
}

/// What the handshake must have made sure of, looked at from outside.
Status Tls::check_peer() const {
  const SSL* ssl = ssl_.get();
  const bool by_key = SSL_session_reused(ssl) == 1;
  const bool by_certificate =
      SSL_get0_peer_certificate(ssl) != nullptr && SSL_get_verify_result(ssl) == X509_V_OK;
  if (SSL_version(ssl) == TLS1_3_VERSION && (credentials_->psk.empty() ? by_certificate && !by_key : by_key))
    return {};
  return refused("authenticate", "the other engine has proven nothing",
                 "give both sides the same credentials");
}

/// An engine that speaks plain TCP is told apart, so that it can be told so.
Status Tls::judge_first_bytes(std::span<const std::byte> received) {
  if (greeted_ || received.empty()) return {};
  greeted_ = true;
  const auto first = static_cast<char>(received[0]);
  if (first == kPlainMagic[0])
    return refused(
        "authenticate", "it speaks plain TCP",
        role_ == TlsRole::kServer
            ? "this side has credentials: give the other one --psk-file, or --tls-ca, --tls-cert "
              "and --tls-key"
            : "start `godwit receive` there with --psk-file, or --tls-ca, --tls-cert and --tls-key");
  if (first == kHandshakeRecord || first == kAlertRecord) return {};
  return refused("authenticate", "it does not speak TLS", "is it an engine of godwit?");
}

Result<bool> Tls::handshake(std::span<const std::byte>& received, std::vector<std::byte>& out) {
  const std::lock_guard lock(mutex_);
  TRY(judge_first_bytes(received));
  incoming_ = received;
  ERR_clear_error();
  const int done = SSL_do_handshake(ssl_.get());
  const bool waits = done != 1 && SSL_get_error(ssl_.get(), done) == SSL_ERROR_WANT_READ;
  received = incoming_;
  incoming_ = {};
  out.insert(out.end(), outgoing_.begin(), outgoing_.end());
  outgoing_.clear();
  if (waits) return false;
  if (done != 1) return explain("authenticate");
  TRY(check_peer());
  return true;
}

Status Tls::renew_keys() {
  if (sealed_ < rekey_after_) return {};
  if (SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1) return explain("renew the keys");
  sealed_ = 0;
  ++rekeyed_;
  return {};
}

Status Tls::seal(std::span<const std::byte> plain, std::vector<std::byte>& out) {
  const std::lock_guard lock(mutex_);
  ERR_clear_error();
  // ORDER: what open() wanted to say (an answer to new keys) has the earlier record number.
  out.insert(out.end(), outgoing_.begin(), outgoing_.end());
  outgoing_.clear();
  outgoing_.swap(out);  // SSL writes to where the caller wants it
  Status sealed = renew_keys();
  size_t written = 0;
  if (sealed.ok() && !plain.empty() && SSL_write_ex(ssl_.get(), plain.data(), plain.size(), &written) != 1)
    sealed = broken_ ? *broken_ : explain("encrypt");  // what open() met ends both directions
  outgoing_.swap(out);
  sealed_ += written;
  return sealed;
}

Result<size_t> Tls::open(std::span<const std::byte>& received, std::span<std::byte> into) {
  const std::lock_guard lock(mutex_);
  ERR_clear_error();
  incoming_ = received;
  size_t filled = 0;
  int done = 1;
  while (filled < into.size() && done == 1) {
    size_t got = 0;
    done = SSL_read_ex(ssl_.get(), into.data() + filled, into.size() - filled, &got);
    filled += got;
  }
  received = incoming_;
  incoming_ = {};
  if (done != 1) note_failure(done);
  if (filled > 0 || !broken_) return filled;
  return *broken_;
}

/// What open() says once everything that came before has been handed out.
void Tls::note_failure(int done) {
  const int error = SSL_get_error(ssl_.get(), done);
  if (error == SSL_ERROR_WANT_READ || broken_) return;
  const int reason = ERR_GET_REASON(ERR_peek_error());
  if (error == SSL_ERROR_ZERO_RETURN)
    broken_ = fail(ErrorKind::kPeerGone, "receiving: the other engine closed the connection", peer_);
  else if (meaning_of_alert(reason) != nullptr)
    broken_ = explain("receiving");
  else
    broken_ = fail(ErrorKind::kCorrupt, fmt::format("receiving: {}", drain_openssl_errors()), peer_,
                   "an encrypted record was changed on its way, left out, repeated or reordered");
}

void Tls::close(std::vector<std::byte>& out) {
  const std::lock_guard lock(mutex_);
  outgoing_.swap(out);
  (void)SSL_shutdown(ssl_.get());
  outgoing_.swap(out);
  ERR_clear_error();
}

Result<Secret> Tls::exporter(std::string_view label, std::span<const std::byte> context) {
  const std::lock_guard lock(mutex_);
  Secret secret;
  if (SSL_export_keying_material(
          ssl_.get(), reinterpret_cast<unsigned char*>(secret.data()), secret.size(), label.data(),
          label.size(), reinterpret_cast<const unsigned char*>(context.data()), context.size(), 1) != 1)
    return fail(ErrorKind::kBug, "export a secret of a connection", peer_, drain_openssl_errors());
  return secret;
}

std::string Tls::peer_identity() const {
  const X509* certificate = SSL_get0_peer_certificate(ssl_.get());
  return certificate != nullptr ? subject_of(certificate) : "the holder of the pre-shared key";
}

Secret keyed_hash(const Secret& key, std::span<const std::span<const std::byte>> parts) {
  std::vector<unsigned char> all;
  for (const auto part : parts) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(part.data());
    all.insert(all.end(), bytes, bytes + part.size());
  }
  Secret out{};
  unsigned size = out.size();
  CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), all.data(), all.size(),
             reinterpret_cast<unsigned char*>(out.data()), &size) != nullptr);
  return out;
}

bool equal_secrets(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace godwit::transport
