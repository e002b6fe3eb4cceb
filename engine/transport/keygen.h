// Makes what credentials are loaded from: a pre-shared key, or a small CA and certificates of hosts. Files
// are of mode 0600, and nothing is overwritten. Any thread.
#pragma once

#include <string>

#include "engine/base/result.h"

namespace godwit::transport {

/// 32 random bytes, in hexadecimal. Errors: Usage (the file exists), System.
Status make_psk(const std::string& path);

/// FOLDER/NAME.pem and FOLDER/NAME.key, good for `days`, signed by FOLDER/ca.pem and FOLDER/ca.key; makes
/// these and the folder first if there are none. Errors: Usage (the host's files exist, or no such name),
/// System.
Status make_host_certificate(const std::string& folder, const std::string& name, unsigned days);

}  // namespace godwit::transport
