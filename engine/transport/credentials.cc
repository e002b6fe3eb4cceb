#include "engine/transport/credentials.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include "engine/base/files.h"
#include "engine/transport/credentials_store.h"
#include "engine/transport/tls_callbacks.h"

namespace godwit::transport {

namespace {

constexpr size_t kLeastKey = 32, kMostKey = 64;  // bytes
constexpr long kMostOfCertificates = 32 << 10;   // what a stranger may send as its chain

Error wrong_file(const char* what, const std::string& path, std::string remedy) {
  return fail(ErrorKind::kUsage, fmt::format("read {}", what), path, std::move(remedy));
}

/// A secret that everybody may read is none.
Status require_private(const char* what, const std::string& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return fail_errno(fmt::format("read {}", what), path);
  if ((found.st_mode & S_IRWXO) == 0) return {};
  return wrong_file(what, path,
                    fmt::format("everybody on this host may read it: chmod 600, and make a new one if "
                                "somebody may have (its mode is {:o})",
                                found.st_mode & 07777));
}

int nibble(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Result<std::vector<unsigned char>> read_psk(const std::string& path) {
  TRY(require_private("the pre-shared key", path));
  std::string text = TRY(read_file(path));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  std::vector<unsigned char> key;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    const int high = nibble(text[i]), low = nibble(text[i + 1]);
    if (high < 0 || low < 0) break;
    key.push_back(static_cast<unsigned char>(high << 4 | low));
  }
  const bool whole = text.size() == 2 * key.size();
  OPENSSL_cleanse(text.data(), text.size());
  if (whole && key.size() >= kLeastKey && key.size() <= kMostKey) return key;
  OPENSSL_cleanse(key.data(), key.size());
  return wrong_file("the pre-shared key", path,
                    "it must be 64 to 128 hexadecimal digits: make one with `godwit keygen --psk FILE`");
}

Status set_up_common(SSL_CTX* context, bool psk) {
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION);
  // A PSK goes with one hash. AES first where the processor has it.
  const bool fast_aes = __builtin_cpu_supports("aes") != 0;
  const std::string aes = psk ? "TLS_AES_128_GCM_SHA256" : "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
  const std::string chacha = "TLS_CHACHA20_POLY1305_SHA256";
  const std::string suites = fast_aes ? aes + ":" + chacha : chacha + ":" + aes;
  if (SSL_CTX_set_ciphersuites(context, suites.c_str()) != 1 ||
      SSL_CTX_set1_groups_list(context, "X25519:P-256") != 1)
    return fail(ErrorKind::kSystem, "set up TLS", drain_openssl_errors());
  // Every connection proves itself anew: no tickets, no resumption, no early data.
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_max_cert_list(context, kMostOfCertificates);
  SSL_CTX_set_session_id_context(context, kSessionContext, sizeof kSessionContext);
  return {};
}

/// Errors at a start are better than errors at the peer.
Status check_our_own(SSL_CTX* context, const TlsFiles& files) {
  X509* own = SSL_CTX_get0_certificate(context);
  std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(X509_STORE_CTX_new(),
                                                                        X509_STORE_CTX_free);
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(context, &chain);
  if (!check || X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(context), own, chain) != 1)
    return fail(ErrorKind::kSystem, "check our certificate", drain_openssl_errors());
  if (X509_verify_cert(check.get()) == 1) return {};
  const int code = X509_STORE_CTX_get_error(check.get());
  ERR_clear_error();
  return fail(
      ErrorKind::kUntrusted,
      fmt::format("use our own certificate {}: {}", subject_of(own), X509_verify_cert_error_string(code)),
      files.certificate,
      fmt::format("it must be signed by {} and not have expired; make one with `godwit keygen`", files.ca));
}

Status load_certificates(SSL_CTX* context, const TlsFiles& files) {
  TRY(require_private("the key of the certificate", files.key));
  // Nobody else is trusted: the system's authorities vouch for the whole world.
  if (SSL_CTX_load_verify_file(context, files.ca.c_str()) != 1)
    return wrong_file("the certificates of the CA", files.ca, drain_openssl_errors());
  if (SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1)
    return wrong_file("the certificate of this host", files.certificate, drain_openssl_errors());
  if (SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1)
    return wrong_file("the key of the certificate", files.key,
                      fmt::format("{}: it must be the key of {}", drain_openssl_errors(), files.certificate));
  return check_our_own(context, files);
}

}  // namespace

Credentials::~Credentials() {
  if (!psk.empty()) OPENSSL_cleanse(psk.data(), psk.size());
}

std::string drain_openssl_errors() {
  std::string first;
  while (const unsigned long code = ERR_get_error()) {
    if (first.empty() && ERR_reason_error_string(code) != nullptr) first = ERR_reason_error_string(code);
  }
  return first.empty() ? "no reason given" : first;
}

Result<std::shared_ptr<const Credentials>> load_credentials(const TlsFiles& files) {
  if (!files.any()) return std::shared_ptr<const Credentials>();
  const bool certificates = !files.ca.empty() && !files.certificate.empty() && !files.key.empty();
  if (files.psk.empty() ? !certificates : !(files.ca + files.certificate + files.key).empty())
    return fail(ErrorKind::kUsage, "read the credentials", "--tls-ca, --tls-cert, --tls-key, --psk-file",
                "give either the first three or the last one");
  auto made = std::make_shared<Credentials>();
  if (!files.psk.empty()) made->psk = TRY(read_psk(files.psk));
  made->ca_path = files.ca;
  made->context.reset(SSL_CTX_new(TLS_method()));
  if (!made->context) return fail(ErrorKind::kSystem, "set up TLS", drain_openssl_errors());
  TRY(set_up_common(made->context.get(), !files.psk.empty()));
  if (files.psk.empty()) TRY(load_certificates(made->context.get(), files));
  install_callbacks(made->context.get(), !files.psk.empty());
  return std::shared_ptr<const Credentials>(std::move(made));
}

}  // namespace godwit::transport
