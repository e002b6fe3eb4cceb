// What a stranger can make the handshake read. The first byte chooses who we are (server or client, key or
// certificates) and in which pieces the rest comes. The corpus in tests/fuzz/corpus/handshake replays in the
// unit tests.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <vector>

#include "engine/transport/keygen.h"
#include "engine/transport/tls.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace godwit;
using namespace godwit::transport;

struct Keys {
  std::shared_ptr<const Credentials> psk, certificates;
};

/// Made once; the files are gone again when they are loaded.
const Keys& keys() {
  static const Keys made = [] {
    std::string folder = std::filesystem::temp_directory_path() / "godwit-fuzz-XXXXXX";
    CHECK(::mkdtemp(folder.data()) != nullptr);
    CHECK(make_psk(folder + "/psk").ok() && make_host_certificate(folder + "/ca", "host", 30).ok());
    Keys loaded{load_credentials({.psk = folder + "/psk"}).take(),
                load_credentials({.ca = folder + "/ca/ca.pem",
                                  .certificate = folder + "/ca/host.pem",
                                  .key = folder + "/ca/host.key"})
                    .take()};
    std::filesystem::remove_all(folder);
    return loaded;
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t choice = data[0];
  const TlsRole role = (choice & 1) != 0 ? TlsRole::kClient : TlsRole::kServer;
  auto tls = Tls::create((choice & 2) != 0 ? keys().psk : keys().certificates, role, "somebody").take();
  const size_t piece = (choice >> 2) == 0 ? size : size_t{choice} >> 2;
  std::span<const std::byte> rest = std::as_bytes(std::span(data, size)).subspan(1);
  std::vector<std::byte> out;
  std::span<const std::byte> nothing;
  if (role == TlsRole::kClient) CHECK(tls->handshake(nothing, out).ok());  // it speaks first
  while (!rest.empty()) {
    std::span<const std::byte> now = rest.first(std::min(piece, rest.size()));
    rest = rest.subspan(now.size());
    const auto done = tls->handshake(now, out);
    if (!done.ok()) {
      if (done.error().message().empty()) std::abort();  // every refusal says why
      break;
    }
    // Nobody can prove anything here: whoever gets through has found a way in.
    if (done.value()) std::abort();
  }
  return 0;
}
