// Hosts for tests: network namespaces on one bridge, all made and taken down by the test itself.
// Needs CAP_SYS_ADMIN and the `ip` tool. A thread acts as a host while it holds an `AsHost` of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::test {

/// The calling thread is inside the network namespace until the end of the scope.
class AsHost {
 public:
  explicit AsHost(int network_namespace);
  ~AsHost();
  AsHost(const AsHost&) = delete;
  AsHost& operator=(const AsHost&) = delete;

 private:
  Fd before_;
};

struct NetworkHost {
  std::string name;
  Fd network;  ///< the namespace; lives as long as this (and the processes in it)

  /// Runs a shell command in this host. Returns its output; a failing command is reported as a test failure.
  [[nodiscard]] std::string run(const std::string& command) const;
};

class Network {
 public:
  /// Each host gets a device eth0 on the common bridge, addresses 10.77.0.N/24 and fd77::N/64 (N from 1), and
  /// lo up.
  static Result<std::unique_ptr<Network>> create(const std::vector<std::string>& names);
  [[nodiscard]] const NetworkHost& host(size_t i) const { return hosts_[i]; }

 private:
  std::vector<NetworkHost> hosts_;
  NetworkHost bridge_;
};

}  // namespace godwit::test
