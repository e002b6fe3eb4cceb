// The loaded form of credentials, for tls.cc alone.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <vector>

#include "engine/transport/credentials.h"

namespace godwit::transport {

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};

/// Those who verify must name what their sessions are good for.
inline constexpr unsigned char kSessionContext[] = {'g', 'o', 'd', 'w', 'i', 't'};

class Credentials {
 public:
  std::unique_ptr<SSL_CTX, FreeContext> context;  ///< for both roles
  std::vector<unsigned char> psk;                 ///< empty: certificates
  std::string ca_path;
  ~Credentials();
};

/// Everything that OpenSSL has to say, and its queue is empty.
std::string drain_openssl_errors();

}  // namespace godwit::transport
