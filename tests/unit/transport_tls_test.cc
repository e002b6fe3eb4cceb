// TLS without a socket: two ends, and the bytes between them in the test's hands.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <fstream>
#include <numeric>
#include <thread>

#include "engine/base/units.h"
#include "engine/transport/tls.h"
#include "tests/support/key_files.h"

namespace godwit::transport {
namespace {

using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes pattern(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + (i >> 8));
  return bytes;
}

struct Ends {
  std::unique_ptr<Tls> client, server;
  Bytes to_client, to_server;
  Status client_says, server_says;
  bool client_done = false, server_done = false;

  Ends(std::shared_ptr<const Credentials> ours, std::shared_ptr<const Credentials> theirs)
      : client(Tls::create(std::move(ours), TlsRole::kClient, "the server").take()),
        server(Tls::create(std::move(theirs), TlsRole::kServer, "the client").take()) {}

  static void step(Tls& tls, Bytes& in, Bytes& out, bool& done, Status& says) {
    const Bytes taken = std::exchange(in, {});
    std::span<const std::byte> left(taken);
    auto result = tls.handshake(left, out);
    done = result.ok() && result.value();
    if (!result.ok()) says = result.take_error();
    in.assign(left.begin(), left.end());
  }
  /// Until both are through, or one has failed and the other heard of it.
  void shake_hands() {
    for (int turn = 0; turn < 6 && !(client_done && server_done); ++turn) {
      if (!client_done && client_says.ok()) step(*client, to_client, to_server, client_done, client_says);
      if (!server_done && server_says.ok()) step(*server, to_server, to_client, server_done, server_says);
    }
    if (client_done && !server_says.ok()) {  // a client learns of its refusal when it reads
      std::span<const std::byte> left(to_client);
      Bytes none(1);
      auto opened = client->open(left, none);
      if (!opened.ok()) client_says = opened.take_error();
    }
  }
};

std::string said(const Status& status) {
  return status.ok() ? "ok" : std::string(to_string(status.error().kind)) + ": " + status.error().message();
}

/// Opens everything that is in `sealed`.
Result<Bytes> open_all(Tls& tls, std::span<const std::byte> sealed) {
  Bytes all;
  while (true) {
    Bytes room(64_KiB);
    const size_t opened = TRY(tls.open(sealed, room));
    if (opened == 0) return all;
    all.insert(all.end(), room.begin(), room.begin() + static_cast<ptrdiff_t>(opened));
  }
}

Bytes sealed(Tls& tls, const Bytes& plain) {
  Bytes out;
  EXPECT_TRUE(tls.seal(plain, out).ok());
  return out;
}

class TlsTest : public testing::Test {
 protected:
  KeyFiles keys_;
};

TEST_F(TlsTest, AKeyThatBothHaveIsEnough) {
  Ends ends(keys_.psk(), keys_.psk());
  ends.shake_hands();
  ASSERT_TRUE(ends.client_done && ends.server_done) << said(ends.client_says) << said(ends.server_says);
  const Bytes plain = pattern(300'000);
  EXPECT_TRUE(open_all(*ends.server, sealed(*ends.client, plain)).value() == plain);
  EXPECT_TRUE(open_all(*ends.client, sealed(*ends.server, plain)).value() == plain);
}

TEST_F(TlsTest, CertificatesOfOneCaNameThePeers) {
  Ends ends(keys_.host("source"), keys_.host("target"));
  ends.shake_hands();
  ASSERT_TRUE(ends.client_done && ends.server_done) << said(ends.client_says) << said(ends.server_says);
  EXPECT_THAT(ends.client->peer_identity(), HasSubstr("CN = target"));
  EXPECT_THAT(ends.server->peer_identity(), HasSubstr("CN = source"));
}

TEST_F(TlsTest, AnotherKeyIsRefusedAndBothSidesSayWhy) {
  Ends ends(keys_.psk("one"), keys_.psk("other"));
  ends.shake_hands();
  EXPECT_FALSE(ends.client_done || ends.server_done);
  for (const Status* says : {&ends.client_says, &ends.server_says})
    EXPECT_THAT(said(*says), testing::AllOf(HasSubstr("untrusted"), HasSubstr("another pre-shared key")));
}

TEST_F(TlsTest, AForeignCaIsRefused) {
  Ends ends(keys_.host("source", "foreign"), keys_.host("target"));
  ends.shake_hands();
  EXPECT_FALSE(ends.server_done);
  EXPECT_THAT(said(ends.client_says), testing::AllOf(HasSubstr("untrusted"), HasSubstr("CN = target"),
                                                     HasSubstr("not signed by our CA")));
  EXPECT_THAT(said(ends.server_says), HasSubstr("does not know the CA"));
}

/// The client trusts the server's CA, but its own certificate is of another one.
TEST_F(TlsTest, AForeignCertificateIsRefusedByTheServerToo) {
  TlsFiles mixed = keys_.host_files("source", "foreign");
  const TlsFiles server = keys_.host_files("target");
  std::ofstream both(keys_.path("both.pem"));  // so that it may use its own certificate at all
  for (const std::string& ca : {mixed.ca, server.ca}) both << std::ifstream(ca).rdbuf();
  both.close();
  mixed.ca = keys_.path("both.pem");
  Ends ends(KeyFiles::load(mixed), KeyFiles::load(server));
  ends.shake_hands();
  EXPECT_FALSE(ends.server_done);
  EXPECT_THAT(said(ends.server_says), testing::AllOf(HasSubstr("untrusted"), HasSubstr("CN = source"),
                                                     HasSubstr("not signed by our CA")));
  EXPECT_THAT(said(ends.client_says),
              testing::AllOf(HasSubstr("untrusted"), HasSubstr("does not know the CA")));
}

TEST_F(TlsTest, CertificatesAndKeysDoNotMix) {
  Ends one(keys_.psk(), keys_.host("target"));
  one.shake_hands();
  EXPECT_THAT(said(one.client_says), HasSubstr("this side has a pre-shared key"));
  EXPECT_FALSE(one.server_done);
  Ends other(keys_.host("source"), keys_.psk());
  other.shake_hands();
  EXPECT_THAT(said(other.client_says), HasSubstr("accepts other credentials"));
  EXPECT_THAT(said(other.server_says), HasSubstr("does not have the pre-shared key"));
}

TEST_F(TlsTest, APlainPeerIsToldApart) {
  const std::string_view header = "GODWIT\r\n and more";
  for (const TlsRole role : {TlsRole::kClient, TlsRole::kServer}) {
    auto tls = Tls::create(keys_.psk(), role, "somebody").take();
    Bytes out;
    std::span<const std::byte> in = std::as_bytes(std::span(header));
    EXPECT_THAT(said([&]() -> Status {
                  TRY(tls->handshake(in, out));
                  return {};
                }()),
                HasSubstr("speaks plain TCP"));
  }
}

TEST_F(TlsTest, NoiseIsRefused) {
  auto tls = Tls::create(keys_.host("target"), TlsRole::kServer, "somebody").take();
  for (const std::string_view noise : {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff\xff\xff"}) {
    Bytes out;
    std::span<const std::byte> in = std::as_bytes(std::span(noise));
    EXPECT_FALSE(tls->handshake(in, out).ok()) << noise;
  }
}

/// What a stock client does that does not hold to our rules.
class Stranger {
 public:
  explicit Stranger(int version) : context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_set_max_proto_version(context_, version);
  }
  ~Stranger() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;
  SSL_CTX* context() { return context_; }

  /// What the server says in the end.
  std::string meet(Tls& server) {
    ssl_ = SSL_new(context_);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl_, in, out);
    SSL_set_connect_state(ssl_);
    for (int turn = 0; turn < 6; ++turn) {
      (void)SSL_do_handshake(ssl_);
      char* data = nullptr;
      const long size = BIO_get_mem_data(out, &data);
      const Bytes sent(reinterpret_cast<std::byte*>(data), reinterpret_cast<std::byte*>(data) + size);
      (void)BIO_reset(out);
      std::span<const std::byte> left(sent);
      Bytes answer;
      auto done = server.handshake(left, answer);
      if (!done.ok()) return said(done.take_error());
      if (done.value()) return "accepted";
      BIO_write(in, answer.data(), static_cast<int>(answer.size()));
    }
    return "waits";
  }

 private:
  SSL_CTX* context_;
  SSL* ssl_ = nullptr;
};

std::unique_ptr<Tls> server_with(std::shared_ptr<const Credentials> credentials) {
  return Tls::create(std::move(credentials), TlsRole::kServer, "a stranger").take();
}

TEST_F(TlsTest, AStrangerWithoutACertificateIsRefused) {
  Stranger stranger(TLS1_3_VERSION);
  EXPECT_THAT(stranger.meet(*server_with(keys_.host("target"))), HasSubstr("shows no certificate"));
}

TEST_F(TlsTest, OlderVersionsAreRefused) {
  Stranger stranger(TLS1_2_VERSION);
  EXPECT_THAT(stranger.meet(*server_with(keys_.host("target"))), HasSubstr("does not speak TLS 1.3"));
  Stranger other(TLS1_2_VERSION);
  EXPECT_THAT(other.meet(*server_with(keys_.psk())), HasSubstr("does not speak TLS 1.3"));
}

/// Signs the certificate again, so that it expired yesterday.
void expire(const TlsFiles& files, const std::string& ca_key) {
  FILE* file = std::fopen(files.certificate.c_str(), "r");
  X509* certificate = PEM_read_X509(file, nullptr, nullptr, nullptr);
  std::fclose(file);
  file = std::fopen(ca_key.c_str(), "r");
  EVP_PKEY* key = PEM_read_PrivateKey(file, nullptr, nullptr, nullptr);
  std::fclose(file);
  X509_time_adj_ex(X509_getm_notBefore(certificate), -2, 0, nullptr);
  X509_time_adj_ex(X509_getm_notAfter(certificate), -1, 0, nullptr);
  ASSERT_NE(X509_sign(certificate, key, nullptr), 0);
  file = std::fopen(files.certificate.c_str(), "w");
  PEM_write_X509(file, certificate);
  std::fclose(file);
  X509_free(certificate);
  EVP_PKEY_free(key);
}

TEST_F(TlsTest, AnExpiredCertificateIsRefused) {
  const TlsFiles files = keys_.host_files("old");
  expire(files, keys_.path("ca/ca.key"));
  Stranger stranger(TLS1_3_VERSION);
  ASSERT_EQ(SSL_CTX_use_certificate_file(stranger.context(), files.certificate.c_str(), SSL_FILETYPE_PEM), 1);
  ASSERT_EQ(SSL_CTX_use_PrivateKey_file(stranger.context(), files.key.c_str(), SSL_FILETYPE_PEM), 1);
  EXPECT_THAT(stranger.meet(*server_with(keys_.host("target"))),
              testing::AllOf(HasSubstr("untrusted"), HasSubstr("CN = old"), HasSubstr("has expired"),
                             HasSubstr("keygen")));
  const auto own = load_credentials(files);
  ASSERT_FALSE(own.ok());
  EXPECT_THAT(own.error().message(), testing::AllOf(HasSubstr("expired"), HasSubstr("CN = old")));
}

class TlsRecords : public TlsTest {
 protected:
  TlsRecords() : ends_(keys_.psk(), keys_.psk()) {
    ends_.shake_hands();
    first_ = sealed(*ends_.client, pattern(1000));
    second_ = sealed(*ends_.client, pattern(2000));
  }
  /// What the server says to these bytes, and all it had opened before.
  std::string say(const Bytes& bytes) {
    auto opened = open_all(*ends_.server, bytes);
    return opened.ok() ? "took " + std::to_string(opened.value().size()) : said(opened.take_error());
  }
  Ends ends_;
  Bytes first_, second_;  ///< of the client, in this order
};

TEST_F(TlsRecords, ArriveInOrder) {
  EXPECT_EQ(say(first_), "took 1000");
  EXPECT_EQ(say(second_), "took 2000");
}

TEST_F(TlsRecords, ThatWereChangedAreRefused) {
  first_[first_.size() / 2] ^= std::byte{1};
  EXPECT_THAT(say(first_), testing::AllOf(HasSubstr("corrupt"), HasSubstr("changed on its way")));
  EXPECT_THAT(say(second_), HasSubstr("corrupt")) << "a broken connection stays broken";
}

TEST_F(TlsRecords, OutOfOrderAreRefused) {
  EXPECT_THAT(say(second_), HasSubstr("corrupt"));
}

TEST_F(TlsRecords, ThatComeTwiceAreRefused) {
  EXPECT_EQ(say(first_), "took 1000");
  EXPECT_THAT(say(first_), HasSubstr("corrupt"));
}

TEST_F(TlsRecords, OfAnotherConnectionAreRefused) {
  Ends other(keys_.psk(), keys_.psk());
  other.shake_hands();
  EXPECT_THAT(say(sealed(*other.client, pattern(1000))), HasSubstr("corrupt"));
}

TEST_F(TlsRecords, InPiecesWaitForTheRest) {
  const Bytes head(first_.begin(), first_.begin() + 100), rest(first_.begin() + 100, first_.end());
  EXPECT_EQ(say(head), "took 0");
  EXPECT_EQ(say(rest), "took 1000");
}

TEST_F(TlsRecords, EndWithANotice) {
  Bytes notice;
  ends_.client->close(notice);
  first_.insert(first_.end(), second_.begin(), second_.end());
  first_.insert(first_.end(), notice.begin(), notice.end());
  std::span<const std::byte> left(first_);
  Bytes room(5000);
  EXPECT_EQ(ends_.server->open(left, room).value(), 3000u) << "all that came before";
  EXPECT_THAT(said(ends_.server->open(left, room).take_error()), HasSubstr("closed the connection"));
}

TEST_F(TlsTest, KeysAreRenewedUnderWay) {
  Ends ends(keys_.psk(), keys_.psk());
  ends.shake_hands();
  ends.client->set_rekey_after(50'000);
  const Bytes plain = pattern(20'000);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(open_all(*ends.server, sealed(*ends.client, plain)).value() == plain) << i;
    EXPECT_TRUE(open_all(*ends.client, sealed(*ends.server, plain)).value() == plain) << i;
  }
  EXPECT_GE(ends.client->rekeyed(), 5u);
}

TEST_F(TlsTest, ExportsASecretOfTheConnectionAndContextAlone) {
  Ends ends(keys_.host("source"), keys_.host("target")), other(keys_.host("source"), keys_.host("target"));
  ends.shake_hands();
  other.shake_hands();
  const Bytes context = pattern(16), another = pattern(17);
  const Secret secret = ends.client->exporter("EXPORTER-test", context).take();
  EXPECT_EQ(secret, ends.server->exporter("EXPORTER-test", context).take());
  EXPECT_NE(secret, ends.server->exporter("EXPORTER-other", context).take());
  EXPECT_NE(secret, ends.server->exporter("EXPORTER-test", another).take());
  EXPECT_NE(secret, other.server->exporter("EXPORTER-test", context).take());
}

// ---- files
// -------------------------------------------------------------------------------------------------------

mode_t mode_of(const std::string& path) {
  struct stat found {};
  EXPECT_EQ(::stat(path.c_str(), &found), 0) << path;
  return found.st_mode & 07777;
}

TEST_F(TlsTest, KeygenMakesPrivateFilesAndOverwritesNothing) {
  ::umask(0);
  keys_.host_files("a");
  keys_.psk_files();
  for (const char* name : {"psk", "ca/ca.pem", "ca/ca.key", "ca/a.pem", "ca/a.key"})
    EXPECT_EQ(mode_of(keys_.path(name)), 0600u) << name;
  EXPECT_EQ(mode_of(keys_.path("ca")), 0700u);
  EXPECT_EQ(make_psk(keys_.path("psk")).error().kind, ErrorKind::kUsage);
  EXPECT_EQ(make_host_certificate(keys_.path("ca"), "a", 1).error().kind, ErrorKind::kUsage);
  EXPECT_NE(keys_.psk(), nullptr) << "still good";
  EXPECT_NE(keys_.host("a"), nullptr);
}

TEST_F(TlsTest, KeygenTakesNamesOfHostsOnly) {
  for (const char* name : {"", "ca", "../x", "a/b", "a,DNS:b", "-x", ".x", "a b"})
    EXPECT_EQ(make_host_certificate(keys_.path("ca"), name, 1).error().kind, ErrorKind::kUsage) << name;
}

TEST_F(TlsTest, CredentialsMustBeWholeAndPrivate) {
  const auto refused = [](const TlsFiles& files) {
    const auto loaded = load_credentials(files);
    return loaded.ok() ? "loaded" : loaded.error().message();
  };
  EXPECT_EQ(load_credentials({}).value(), nullptr) << "plain TCP";
  TlsFiles files = keys_.host_files("a");
  EXPECT_THAT(refused({.ca = files.ca}), HasSubstr("either the first three"));
  TlsFiles both = files;
  both.psk = keys_.psk_files().psk;
  EXPECT_THAT(refused(both), HasSubstr("either the first three"));
  TlsFiles swapped = files;
  swapped.key = keys_.host_files("b").key;
  EXPECT_THAT(refused(swapped), HasSubstr("must be the key of"));
  std::ofstream(keys_.path("short")) << "00112233\n";
  ::chmod(keys_.path("short").c_str(), 0600);
  EXPECT_THAT(refused({.psk = keys_.path("short")}), HasSubstr("64 to 128 hexadecimal digits"));
  ::chmod(keys_.path("psk").c_str(), 0644);
  EXPECT_THAT(refused({.psk = keys_.path("psk")}), HasSubstr("everybody on this host may read it"));
  ::chmod(files.key.c_str(), 0604);
  EXPECT_THAT(refused(files), HasSubstr("everybody on this host may read it"));
}

}  // namespace
}  // namespace godwit::transport
