// A folder of keys for one test, gone with it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "engine/transport/credentials.h"
#include "engine/transport/keygen.h"

namespace godwit::transport {

class KeyFiles {
 public:
  KeyFiles() {
    std::string name = std::filesystem::temp_directory_path() / "godwit-keys-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~KeyFiles() { std::filesystem::remove_all(folder_); }
  KeyFiles(const KeyFiles&) = delete;
  KeyFiles& operator=(const KeyFiles&) = delete;

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }

  TlsFiles psk_files(const std::string& name = "psk") const {
    if (!std::filesystem::exists(path(name))) {
      EXPECT_TRUE(make_psk(path(name)).ok());
    }
    return {.psk = path(name)};
  }
  TlsFiles host_files(const std::string& host, const std::string& ca = "ca") const {
    const std::string stem = path(ca) + "/" + host;
    if (!std::filesystem::exists(stem + ".pem")) {
      EXPECT_TRUE(make_host_certificate(path(ca), host, 30).ok());
    }
    return {.ca = path(ca) + "/ca.pem", .certificate = stem + ".pem", .key = stem + ".key"};
  }
  static std::shared_ptr<const Credentials> load(const TlsFiles& files) {
    auto loaded = load_credentials(files);
    EXPECT_TRUE(loaded.ok()) << (loaded.ok() ? "" : loaded.error().message());
    return loaded.ok() ? loaded.take() : nullptr;
  }
  std::shared_ptr<const Credentials> psk(const std::string& name = "psk") const {
    return load(psk_files(name));
  }
  std::shared_ptr<const Credentials> host(const std::string& name, const std::string& ca = "ca") const {
    return load(host_files(name, ca));
  }

 private:
  std::string folder_;
};

}  // namespace godwit::transport
