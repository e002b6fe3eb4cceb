// What the tests of an address move share: three hosts, a listening service, and the look of a host as text.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/address/address_move.h"
#include "engine/address/move_plan.h"
#include "engine/address/run_tool.h"
#include "engine/base/files.h"
#include "tests/support/network_hosts.h"
#include "tests/support/tcp_stream.h"

namespace godwit::address {

#define EXPECT_OK(expr)                                     \
  do {                                                      \
    const auto& status_ = (expr);                           \
    EXPECT_TRUE(status_.ok()) << status_.error().message(); \
  } while (false)

#define ASSERT_OK(expr)                                     \
  do {                                                      \
    const auto& status_ = (expr);                           \
    ASSERT_TRUE(status_.ok()) << status_.error().message(); \
  } while (false)

constexpr size_t kClient = 2;  // hosts 0 and 1 hand the service address to each other

inline std::string sorted(const std::string& text) {
  auto lines = split(text, '\n');
  std::sort(lines.begin(), lines.end());
  return fmt::format("{}\n", fmt::join(lines, "\n"));
}

/// Everything a move touches. Chains that a tool once made stay, empty; so only rules and policies are
/// compared.
inline std::string look_of(const test::NetworkHost& host) {
  std::string look = host.run("ip -d addr show");
  look += sorted(host.run("ip -d route show table all; ip -6 -d route show table all"));
  for (const char* tool :
       {"iptables-legacy-save", "iptables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-save"}) {
    if (find_tool(tool).empty()) continue;
    look += host.run(fmt::format("{} 2>/dev/null | grep -E '^-A|^:.* DROP' || true", tool));
  }
  look += host.run(
      "cd /proc/sys/net && grep -r . ipv4/conf/*/forwarding ipv4/conf/*/send_redirects ipv4/conf/*/rp_filter "
      "ipv4/conf/*/promote_secondaries ipv4/conf/*/accept_redirects ipv4/ip_forward ipv4/*early_demux "
      "ipv6/conf/*/forwarding ipv6/conf/*/accept_ra $(ls -d ipv6/conf/*/force_forwarding 2>/dev/null)");
  return look;
}

struct Counters {
  uint64_t resets_sent = 0;
  uint64_t connections_reset = 0;  ///< counts a socket closed in repair mode, too
  uint64_t timeouts = 0;           ///< retransmission timeouts, true or early
  uint64_t discarded = 0;          ///< packets that IP or TCP threw away, for whatever reason they count
};

/// One number of /proc/net/{snmp,netstat}: a line of names, then a line of values.
inline uint64_t counter(const std::string& text, std::string_view group, std::string_view name) {
  std::vector<std::string_view> names;
  for (const std::string_view line : split(text, '\n')) {
    const auto words = split(line, ' ');
    if (words.empty() || words[0] != group) continue;
    if (names.empty()) {
      names = words;
      continue;
    }
    for (size_t i = 1; i < std::min(words.size(), names.size()); ++i) {
      if (names[i] == name) return parse_number(words[i]).value_or(0);
    }
  }
  ADD_FAILURE() << "no counter " << name;
  return 0;
}

/// The sum of the named lines of /proc/net/snmp6.
inline uint64_t sum_snmp6(const std::string& text, std::initializer_list<std::string_view> names) {
  uint64_t sum = 0;
  for (const std::string_view line : split(text, '\n')) {
    const std::string_view name = line.substr(0, line.find_first_of(" \t"));
    if (std::find(names.begin(), names.end(), name) == names.end()) continue;
    sum += parse_number(trim(line.substr(name.size()))).value_or(0);
  }
  return sum;
}

inline Counters counters_of(const test::NetworkHost& host) {
  const test::AsHost inside(host.network.get());
  const std::string snmp = read_file("/proc/thread-self/net/snmp").take();
  const std::string netstat = read_file("/proc/thread-self/net/netstat").take();
  const std::string snmp6 = read_file("/proc/thread-self/net/snmp6").take();
  Counters counters;
  counters.resets_sent = counter(snmp, "Tcp:", "OutRsts");
  counters.connections_reset = counter(snmp, "Tcp:", "EstabResets");
  counters.timeouts = counter(netstat, "TcpExt:", "TCPTimeouts");
  for (const char* name : {"InAddrErrors", "InHdrErrors", "InDiscards", "OutDiscards", "OutNoRoutes"}) {
    counters.discarded += counter(snmp, "Ip:", name);
  }
  for (const char* name : {"TCPBacklogDrop", "TCPRcvQDrop", "TCPZeroWindowDrop", "RcvPruned"}) {
    counters.discarded += counter(netstat, "TcpExt:", name);
  }
  counters.discarded +=
      sum_snmp6(snmp6, {"Ip6InAddrErrors", "Ip6InHdrErrors", "Ip6InDiscards", "Ip6OutDiscards",
                        "Ip6InNoRoutes", "Ip6OutNoRoutes", "Ip6InTooBigErrors"});
  return counters;
}

class AddressTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: network namespaces, packet filter rules";
    Result<std::unique_ptr<test::Network>> made = test::Network::create({"a", "b", "client"});
    ASSERT_OK(made);
    network_ = made.take();
  }
  [[nodiscard]] const test::NetworkHost& host(size_t i) const { return network_->host(i); }
  [[nodiscard]] static IpAddress own_address(Family family, size_t i) {
    return IpAddress::parse(fmt::format("{}{}", family == Family::kInet ? "10.77.0." : "fd77::", i + 1))
        .take();
  }
  /// The service address, added to host 0; connects a client to it and starts both ends.
  void start_service(const std::string& service);

  std::unique_ptr<test::Network> network_;
  ServiceAddress service_;
  std::unique_ptr<test::EchoServer> server_;
  std::unique_ptr<test::StreamClient> client_;
};

}  // namespace godwit::address
