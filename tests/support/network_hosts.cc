#include "tests/support/network_hosts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

namespace godwit::test {
namespace {

Fd own_network() {
  return Fd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
}

/// In a thread of its own, because the caller must stay where it is.
Result<Fd> make_network() {
  Fd network;
  int err = 0;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      err = errno;
      return;
    }
    network = own_network();
  }).join();
  if (!network.valid()) return fail_errno("unshare(CLONE_NEWNET)", "test network", err);
  return network;
}

std::string path_of(const NetworkHost& host) {
  return fmt::format("/proc/{}/fd/{}", ::getpid(), host.network.get());
}

}  // namespace

AsHost::AsHost(int network_namespace) : before_(own_network()) {
  if (::setns(network_namespace, CLONE_NEWNET) != 0) ADD_FAILURE() << "setns: " << errno;
}

AsHost::~AsHost() {
  if (::setns(before_.get(), CLONE_NEWNET) != 0) ADD_FAILURE() << "setns back: " << errno;
}

std::string NetworkHost::run(const std::string& command) const {
  const AsHost inside(network.get());
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "re");
  if (pipe == nullptr) {
    ADD_FAILURE() << "popen: " << command;
    return {};
  }
  std::string output;
  char buffer[4096];
  while (const size_t got = ::fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, got);
  const int status = ::pclose(pipe);
  EXPECT_EQ(status, 0) << name << ": " << command << ": " << output;
  return output;
}

Result<std::unique_ptr<Network>> Network::create(const std::vector<std::string>& names) {
  std::unique_ptr<Network> network(new Network);
  network->bridge_ = NetworkHost{"bridge", TRY(make_network())};
  (void)network->bridge_.run("ip link add br0 type bridge && ip link set br0 up");
  for (size_t i = 0; i < names.size(); ++i) {
    network->hosts_.push_back(NetworkHost{names[i], TRY(make_network())});
    const NetworkHost& host = network->hosts_.back();
    (void)network->bridge_.run(
        fmt::format("ip link add port{0} type veth peer name eth0 netns {1} && "
                    "ip link set port{0} master br0 up",
                    i, path_of(host)));
    (void)host.run(fmt::format(
        "ip link set lo up && ip link set eth0 addrgenmode none up && ip addr add 10.77.0.{0}/24 dev eth0 && "
        "ip addr add fd77::{0}/64 dev eth0 nodad && "
        "ip addr add fe80::{0}/64 dev eth0 nodad",
        i + 1));
  }
  return network;
}

}  // namespace godwit::test
