// What an engine shows to others and demands of them: certificates of one CA, or one pre-shared key. Loaded
// once, shared by all connections, good in forked children too. Any thread.
#pragma once

#include <memory>
#include <string>

#include "engine/base/result.h"

namespace godwit::transport {

/// Paths; `psk` alone, or the other three together.
struct TlsFiles {
  std::string ca;           ///< PEM: whoever it signed is trusted
  std::string certificate;  ///< PEM: this host's, with intermediate ones behind it
  std::string key;          ///< PEM: of the certificate
  std::string psk;          ///< 64 to 128 hexadecimal digits
  [[nodiscard]] bool any() const {
    return !ca.empty() || !certificate.empty() || !key.empty() || !psk.empty();
  }
};

class Credentials;

/// Null when no file is named: plain TCP. Errors: Usage (files that do not go together, that everybody may
/// read or that hold something else), Untrusted (our own certificate has expired or is not of this CA),
/// System.
Result<std::shared_ptr<const Credentials>> load_credentials(const TlsFiles& files);

}  // namespace godwit::transport
