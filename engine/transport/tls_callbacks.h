// What OpenSSL asks while it shakes hands. Used by credentials.cc and tls.cc only.
#pragma once

#include <openssl/ssl.h>

#include <string>

namespace godwit::transport {

/// Verification of the peer, and the pre-shared key if there is one. Every SSL of `context` must belong to a
/// Tls.
void install_callbacks(SSL_CTX* context, bool psk);

/// "CN = host-a, O = godwit".
std::string subject_of(const X509* certificate);

}  // namespace godwit::transport
