#include "engine/transport/keygen.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

#include "engine/base/fd.h"
#include "engine/transport/credentials_store.h"

namespace godwit::transport {

namespace {

constexpr unsigned kDaysOfCa = 3650;
constexpr int kHourBefore = -3600;  // clocks differ

struct Free {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(BIO* bio) const { BIO_free(bio); }
};
using Key = std::unique_ptr<EVP_PKEY, Free>;
using Certificate = std::unique_ptr<X509, Free>;
using Memory = std::unique_ptr<BIO, Free>;

struct Pair {
  Certificate certificate;
  Key key;
};

Error openssl_failed(const char* what) {
  return fail(ErrorKind::kSystem, what, drain_openssl_errors());
}

/// Exclusively: an existing secret may be in use.
Status write_new(const std::string& path, std::string_view text) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid() && errno == EEXIST)
    return fail(ErrorKind::kUsage, "make a key", path, "it exists; nothing was overwritten");
  if (!file.valid()) return fail_errno("make a key", path);
  const bool written = ::fchmod(file.get(), 0600) == 0 &&
                       ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                       ::fsync(file.get()) == 0;
  if (written) return {};
  Error error = fail_errno("write a key", path);
  ::unlink(path.c_str());
  return error;
}

std::string text_in(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return {data, static_cast<size_t>(size)};
}

/// The key first: a certificate without one is of no use, and in the way.
Status write_pair(const Pair& pair, const std::string& stem) {
  const Memory key(BIO_new(BIO_s_mem())), certificate(BIO_new(BIO_s_mem()));
  if (!key || !certificate ||
      PEM_write_bio_PrivateKey(key.get(), pair.key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1 ||
      PEM_write_bio_X509(certificate.get(), pair.certificate.get()) != 1)
    return openssl_failed("write a certificate");
  if (::access((stem + ".pem").c_str(), F_OK) == 0)
    return fail(ErrorKind::kUsage, "make a certificate", stem + ".pem", "it exists; nothing was overwritten");
  TRY(write_new(stem + ".key", text_in(key.get())));
  return write_new(stem + ".pem", text_in(certificate.get()));
}

bool add_extension(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* made = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
  const bool added = made != nullptr && X509_add_ext(certificate, made, -1) == 1;
  X509_EXTENSION_free(made);
  return added;
}

bool name_it(X509* certificate, const std::string& name) {
  X509_NAME* subject = X509_get_subject_name(certificate);
  const auto add = [&](const char* field, const std::string& value) {
    return X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8,
                                      reinterpret_cast<const unsigned char*>(value.data()),
                                      static_cast<int>(value.size()), -1, 0) == 1;
  };
  return add("O", "godwit") && add("CN", name);
}

bool number_it(X509* certificate) {
  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof serial) != 1) return false;
  serial[0] &= 0x7f;
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  const bool set =
      number != nullptr && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != nullptr;
  BN_free(number);
  return set;
}

/// Signed by `issuer`, or by itself.
Result<Pair> make_pair(const std::string& name, unsigned days, const Pair* issuer) {
  Pair made{Certificate(X509_new()), Key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"))};
  X509* certificate = made.certificate.get();
  if (certificate == nullptr || !made.key) return openssl_failed("make a key");
  X509* signer = issuer != nullptr ? issuer->certificate.get() : certificate;
  EVP_PKEY* signer_key = issuer != nullptr ? issuer->key.get() : made.key.get();
  const bool filled =
      X509_set_version(certificate, X509_VERSION_3) == 1 && number_it(certificate) &&
      name_it(certificate, name) &&
      X509_gmtime_adj(X509_getm_notBefore(certificate), kHourBefore) != nullptr &&
      X509_time_adj_ex(X509_getm_notAfter(certificate), static_cast<int>(days), 0, nullptr) != nullptr &&
      X509_set_issuer_name(certificate, X509_get_subject_name(signer)) == 1 &&
      X509_set_pubkey(certificate, made.key.get()) == 1;
  const bool extended =
      filled && add_extension(certificate, signer, NID_subject_key_identifier, "hash") &&
      add_extension(certificate, signer, NID_authority_key_identifier, "keyid:always") &&
      (issuer == nullptr
           ? add_extension(certificate, signer, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
                 add_extension(certificate, signer, NID_key_usage, "critical,keyCertSign,cRLSign")
           : add_extension(certificate, signer, NID_basic_constraints, "critical,CA:FALSE") &&
                 add_extension(certificate, signer, NID_key_usage, "critical,digitalSignature") &&
                 add_extension(certificate, signer, NID_ext_key_usage, "serverAuth,clientAuth") &&
                 add_extension(certificate, signer, NID_subject_alt_name, "DNS:" + name));
  if (!extended || X509_sign(certificate, signer_key, nullptr) == 0)
    return openssl_failed("make a certificate");
  return made;
}

Result<Pair> load_pair(const std::string& stem) {
  const Memory certificate(BIO_new_file((stem + ".pem").c_str(), "r"));
  const Memory key(BIO_new_file((stem + ".key").c_str(), "r"));
  Pair loaded;
  if (certificate && key) {
    loaded.certificate.reset(PEM_read_bio_X509(certificate.get(), nullptr, nullptr, nullptr));
    loaded.key.reset(PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, nullptr));
  }
  if (loaded.certificate && loaded.key) return loaded;
  return fail(ErrorKind::kUsage, fmt::format("read the CA: {}", drain_openssl_errors()), stem + ".pem, .key",
              "both must be there; on another host than the CA's, make the certificates on the CA's");
}

/// CAs of one name would be taken for each other in errors.
Result<std::string> name_of_ca() {
  unsigned char number[4];
  if (RAND_bytes(number, sizeof number) != 1) return openssl_failed("make a key");
  return fmt::format("godwit CA {:02x}{:02x}{:02x}{:02x}", number[0], number[1], number[2], number[3]);
}

/// Names end up in file names and in an extension whose syntax has commas.
bool is_host_name(const std::string& name) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
  return !name.empty() && name.size() <= 63 && name[0] != '.' && name[0] != '-' && name != "ca" &&
         name.find_first_not_of(kLetters) == std::string::npos;
}

}  // namespace

Status make_psk(const std::string& path) {
  unsigned char key[32];
  if (RAND_bytes(key, sizeof key) != 1) return openssl_failed("make a key");
  std::string text;
  for (const unsigned char byte : key) text += fmt::format("{:02x}", byte);
  return write_new(path, text + "\n");
}

Status make_host_certificate(const std::string& folder, const std::string& name, unsigned days) {
  if (!is_host_name(name))
    return fail(ErrorKind::kUsage, "make a certificate", name,
                "a name of a host has letters, digits, '.', '-' and '_' only, 63 at most, and is not ca");
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("mkdir", folder);
  const std::string ca = folder + "/ca";
  if (::access((ca + ".pem").c_str(), F_OK) != 0 && ::access((ca + ".key").c_str(), F_OK) != 0)
    TRY(write_pair(TRY(make_pair(TRY(name_of_ca()), kDaysOfCa, nullptr)), ca));
  const Pair issuer = TRY(load_pair(ca));
  return write_pair(TRY(make_pair(name, days, &issuer)), folder + "/" + name);
}

}  // namespace godwit::transport
