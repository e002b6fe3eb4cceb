// Moves a service address with a live TCP connection to and fro between two hosts under continuous load.
#include <netinet/in.h>

#include <map>

#include "engine/state/inet_name.h"
#include "engine/state/tcp_repair.h"
#include "tests/kernel/address_fixture.h"

namespace godwit::address {
namespace {

/// Microseconds of each step over all moves.
class Costs {
 public:
  void mark(const char* step) {
    const Nanos now = monotonic_now();
    if (step != nullptr) times_[step].push_back(to_micros(now - last_));
    last_ = monotonic_now();
  }
  void print() {
    for (auto& [step, micros] : times_) {
      std::sort(micros.begin(), micros.end());
      fmt::print("  {:<28} median {:>7} us, worst {:>7} us\n", step, micros[micros.size() / 2],
                 micros.back());
    }
  }

 private:
  Nanos last_ = monotonic_now();
  std::map<std::string, std::vector<int64_t>> times_;
};

class AddressMove : public AddressTest {
 protected:
  void move(size_t from, size_t to);
  void move_to_and_fro(int times);
  void add_retransmissions(int socket);

  Costs costs_;
  uint64_t held_ = 0;
  uint64_t retransmitted_ = 0;  ///< by the server's sockets
};

void AddressMove::add_retransmissions(int socket) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  ASSERT_EQ(::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
  retransmitted_ += info.tcpi_total_retrans;
}

void AddressMove::move(size_t from, size_t to) {
  std::unique_ptr<AddressMoveSource> source;
  costs_.mark(nullptr);
  {
    const test::AsHost inside(host(from).network.get());
    auto planned = AddressMoveSource::plan({{service_, own_address(service_.ip.family(), to)}});
    ASSERT_OK(planned);
    source = planned.take();
    costs_.mark("1 source: plan");
    ASSERT_OK(source->prepare());
    costs_.mark("2 source: prepare");
    ASSERT_OK(source->arm());
    costs_.mark("3 source: arm");
  }
  ASSERT_TRUE(client_->wait_for(64 * 1024)) << "packets must pass an armed queue";
  server_->pause();
  costs_.mark(nullptr);
  ASSERT_OK(source->freeze());
  costs_.mark("4 source: freeze");
  const Result<state::TcpSnapshot> snapshot = state::capture_connection(server_->socket());
  ASSERT_OK(snapshot);
  costs_.mark("5 source: capture socket");
  {
    const test::AsHost inside(host(from).network.get());
    costs_.mark(nullptr);
    ASSERT_OK(source->handover());
    costs_.mark("6 source: handover");
  }
  const test::AsHost there(host(to).network.get());
  auto destination = AddressMoveDestination::plan({service_});
  ASSERT_OK(destination);
  costs_.mark("7 destination: plan");
  Fd rebuilt(::socket(state::to_sockaddr(snapshot.value().local).ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_OK(state::restore_connection(rebuilt.get(), snapshot.value()));
  costs_.mark("8 destination: rebuild socket");
  ASSERT_OK(destination->claim());
  costs_.mark("9 destination: claim");
  ASSERT_OK(state::resume_connection(rebuilt.get(), snapshot.value()));
  {
    // The frozen original still has its socket: exactly what early demultiplexing would find.
    const test::AsHost inside(host(from).network.get());
    costs_.mark(nullptr);
    ASSERT_OK(source->commit());
    costs_.mark("A source: commit");
  }
  ASSERT_OK(destination->announce());
  costs_.mark("B destination: announce");
  add_retransmissions(server_->socket());
  server_->go_on(std::move(rebuilt));
  ASSERT_TRUE(client_->wait_for(512 * 1024));
  const test::AsHost inside(host(from).network.get());
  costs_.mark(nullptr);
  ASSERT_OK(source->finish());
  costs_.mark("C source: finish");
  const PacketHoldStats stats = source->stats();
  held_ += stats.held;
  EXPECT_EQ(stats.dropped_by_kernel, 0u);
  EXPECT_EQ(stats.dropped_loopback, 0u);
}

void AddressMove::move_to_and_fro(int times) {
  const std::string other_before = look_of(host(1));
  ASSERT_TRUE(client_->wait_for(256 * 1024));
  for (int i = 0; i < times && !HasFatalFailure(); ++i)
    move(static_cast<size_t>(i % 2), static_cast<size_t>(1 - i % 2));
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_TRUE(client_->wait_for(256 * 1024));
  add_retransmissions(server_->socket());
  const test::StreamResult result = client_->finish();
  EXPECT_EQ(result.complaint, "");
  EXPECT_EQ(server_->complaint(), "");
  EXPECT_EQ(look_of(host(1)), other_before) << "after the last move home nothing stays behind";
  EXPECT_GT(held_, 0u) << "no packet ever met a frozen host: the test showed nothing";
  // A retransmission whose bytes had arrived is answered with a duplicate SACK: it was early (this machine
  // was slow), not needed. One without stands for a lost packet; except that answers in each move may be lost
  // on the captured socket, which does not tell its successor, and that one answer may stand for several. A
  // held packet is worth many segments: losing one in each move would be ten times as much.
  EXPECT_LE(result.info.tcpi_total_retrans,
            2 * result.info.tcpi_dsack_dups + 4 * static_cast<uint32_t>(times))
      << "the client lost packets";
  uint64_t timeouts = 0;
  for (size_t i = 0; i < 3; ++i) {
    const Counters counters = counters_of(host(i));
    EXPECT_EQ(counters.resets_sent, 0u) << host(i).name;
    EXPECT_EQ(counters.discarded, 0u) << host(i).name;
    if (i == kClient) {
      EXPECT_EQ(counters.connections_reset, 0u);
    }
    timeouts += counters.timeouts;
  }
  fmt::print(
      "{} moves of {}: {} MiB echoed, {} packets held, {} retransmitted by the client, {} by the server, "
      "{} timeouts, longest silence {} us\n",
      times, service_.to_string(), result.bytes >> 20, held_, result.info.tcpi_total_retrans, retransmitted_,
      timeouts, to_micros(result.longest_silence));
  costs_.print();
}

TEST_F(AddressMove, Ipv4UnderLoad) {
  start_service("10.77.0.100/24@eth0");
  move_to_and_fro(20);
}

TEST_F(AddressMove, Ipv6UnderLoad) {
  start_service("fd77::100/64@eth0");
  move_to_and_fro(20);
}

TEST_F(AddressMove, AHostRouteAddressUnderLoad) {
  start_service("10.77.0.101/32@eth0");
  move_to_and_fro(4);
}

TEST_F(AddressMove, BehindAStatefulFirewall) {
  for (size_t i = 0; i < 2; ++i) {
    (void)host(i).run(
        "iptables -P FORWARD DROP && iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP && "
        "iptables -A INPUT -m conntrack --ctstate INVALID -j DROP && "
        "iptables -t nat -A POSTROUTING -s 10.77.0.3/32 -o eth0 -j MASQUERADE && "
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter");
  }
  start_service("10.77.0.100/24@eth0");
  move_to_and_fro(4);
}

}  // namespace
}  // namespace godwit::address
