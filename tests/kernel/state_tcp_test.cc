// TCP sockets against the real kernel: listeners, and connections that change hosts under the eyes of a peer.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "engine/state/socket_options.h"
#include "engine/tracee/memory.h"
#include "engine/wire/rooms_tcp.pb.h"
#include "tests/kernel/state_fds_fixture.h"
#include "tests/support/network_hosts.h"

namespace godwit::state {
namespace {

using testing::Contains;
using testing::Field;
using testing::HasSubstr;

constexpr uint16_t kPort = 7070;
constexpr size_t kSource = 0, kDestination = 1, kClient = 2;  // hosts
constexpr int kListener = 3, kConnection = 4, kAccepted = 5;  // descriptors of the process
constexpr size_t kAnswer = 400'000;  // bytes: far more than the client's buffer takes
constexpr int kPatience = 20'000;    // milliseconds, for what must come

struct Address {
  sockaddr_storage bytes{};
  socklen_t size = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&bytes); }
};

Address address(const std::string& text, uint16_t port) {
  Address out;
  if (text.find(':') != std::string::npos) {
    auto& six = reinterpret_cast<sockaddr_in6&>(out.bytes);
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(port);
    ::inet_pton(AF_INET6, text.c_str(), &six.sin6_addr);
    out.size = sizeof six;
  } else {
    auto& four = reinterpret_cast<sockaddr_in&>(out.bytes);
    four.sin_family = AF_INET;
    four.sin_port = htons(port);
    ::inet_pton(AF_INET, text.c_str(), &four.sin_addr);
    out.size = sizeof four;
  }
  return out;
}

std::string pattern(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>((i * 31 + i / 251) % 256);
  return out;
}

/// Until `size` bytes, the end of the stream, or the end of patience.
std::string read_all(int fd, size_t size) {
  std::string out;
  std::string piece(65536, '\0');
  pollfd ready{fd, POLLIN, 0};
  while (out.size() < size && ::poll(&ready, 1, kPatience) == 1) {
    const ssize_t got = ::recv(fd, piece.data(), std::min(piece.size(), size - out.size()), MSG_DONTWAIT);
    if (got <= 0) break;
    out.append(piece, 0, static_cast<size_t>(got));
  }
  return out;
}

Fd listener_at(const Address& where, int receive_buffer) {
  Fd fd(::socket(where.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
  if (receive_buffer > 0) {
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer), 0);
  }
  EXPECT_EQ(::bind(fd.get(), where.get(), where.size), 0) << strerror(errno);
  EXPECT_EQ(::listen(fd.get(), 8), 0);
  return fd;
}

/// In the child: listens, connects out, accepts, and answers more than the peer takes in. The port of the
/// listener is not to be shared (SO_REUSEADDR).
void serve(const Address& mine, const Address& theirs) {
  const int family = mine.bytes.ss_family;
  const int on = 1;
  const int large = 4 << 20;
  put(must(::socket(family, SOCK_STREAM, 0)), kListener);
  must(::bind(kListener, mine.get(), mine.size));
  must(::listen(kListener, 17));
  put(must(::socket(family, SOCK_STREAM, 0)), kConnection);
  Address any_port = mine;
  reinterpret_cast<sockaddr_in&>(any_port.bytes).sin_port = 0;
  must(::setsockopt(kConnection, SOL_SOCKET, SO_SNDBUFFORCE, &large, sizeof large));
  must(::setsockopt(kConnection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
  must(::bind(kConnection, any_port.get(), any_port.size));
  must(::connect(kConnection, theirs.get(), theirs.size));
  put(must(::accept(kListener, nullptr, nullptr)), kAccepted);
  const std::string answer = pattern(kAnswer);
  if (::send(kConnection, answer.data(), answer.size(), 0) != static_cast<ssize_t>(kAnswer)) ::_exit(1);
}

wire::TcpState state_of(const std::string& table, uint32_t number) {
  wire::DescriptorTable parsed;
  wire::TcpState state;
  EXPECT_TRUE(parsed.ParseFromString(table));
  for (const auto& one : parsed.descriptions())
    if (one.numbers(0).number() == number) {
      EXPECT_TRUE(state.ParseFromString(one.payload()));
    }
  return state;
}

struct Kind {
  const char* name;
  const char* service;
  const char* client;
  const char* length;
  bool peer_closes;
};

class TcpTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: ptrace of a child, namespaces";
  }
};

class TcpMoveTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: ptrace of a child, namespaces";
    auto made = test::Network::create({"source", "destination", "client"});
    ASSERT_TRUE(made.ok()) << made.error().message();
    network_ = made.take();
    intent_.moved_addresses = {GetParam().service};
    configure(kSource, "add");
    connect_source();
  }

  void configure(size_t host, const char* verb) {
    const bool v6 = std::strchr(GetParam().service, ':') != nullptr;
    (void)network_->host(host).run(std::string("ip addr ") + verb + " " + GetParam().service +
                                   GetParam().length + " dev eth0" +
                                   (v6 && std::string(verb) == "add" ? " nodad" : ""));
  }

  void connect_source() {
    Fd waiting;
    const Address theirs = address(GetParam().client, kPort);
    {
      const test::AsHost there(network_->host(kClient).network.get());
      waiting = listener_at(theirs, 4096);
    }
    std::thread client([&] {
      const test::AsHost there(network_->host(kClient).network.get());
      peer_ = Fd(::accept4(waiting.get(), nullptr, nullptr, SOCK_CLOEXEC));
      const Address service = address(GetParam().service, kPort);
      caller_ = Fd(::socket(service.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      EXPECT_EQ(::connect(caller_.get(), service.get(), service.size), 0) << strerror(errno);
    });
    {
      const test::AsHost there(network_->host(kSource).network.get());
      source_.emplace([&] { serve(address(GetParam().service, kPort), theirs); });
    }
    client.join();
    ASSERT_TRUE(peer_.valid());
    ASSERT_EQ(::send(peer_.get(), "question", 8, 0), 8);
    if (GetParam().peer_closes) {
      ASSERT_EQ(::shutdown(peer_.get(), SHUT_WR), 0);
    }
    // What the peer sent has arrived; what it did not take waits.
    const Fd copy = descriptor(kConnection);
    pollfd arrived{copy.get(), static_cast<short>(GetParam().peer_closes ? POLLRDHUP : POLLIN), 0};
    ASSERT_EQ(::poll(&arrived, 1, kPatience), 1);
  }

  Fd descriptor(int number) {
    auto copy = source_->process().pidfd().get_fd(number);
    EXPECT_TRUE(copy.ok());
    return copy.take();
  }

  Result<std::string> capture(tracee::Frozen* frozen) {
    const auto memory = TRY(tracee::Memory::open(source_->pid()));
    CaptureContext ctx{source_->process(), memory, intent_};
    ctx.files = TRY(read_open_files(source_->process()));
    ctx.frozen = frozen;
    auto table = capture_descriptors(ctx);
    undo_ = std::move(ctx.undo);
    return table;
  }

  void undo() {
    while (!undo_.empty()) {
      undo_.back()();
      undo_.pop_back();
    }
  }

  /// Both directions work, and nothing is lost or comes twice.
  void expect_alive(int server) {
    EXPECT_EQ(read_all(server, 8), "question");
    EXPECT_TRUE(read_all(peer_.get(), kAnswer) == pattern(kAnswer)) << "the answer is not what was sent";
    EXPECT_EQ(::send(server, "more", 4, MSG_NOSIGNAL), 4);
    EXPECT_EQ(read_all(peer_.get(), 4), "more");
    if (GetParam().peer_closes) {
      char byte = 0;
      EXPECT_EQ(::recv(server, &byte, 1, MSG_DONTWAIT), 0) << strerror(errno);
      return;
    }
    EXPECT_EQ(::send(peer_.get(), "thanks", 6, MSG_NOSIGNAL), 6);
    EXPECT_EQ(read_all(server, 6), "thanks");
  }

  Intent intent_;
  std::unique_ptr<test::Network> network_;
  std::optional<Source> source_;
  Fd peer_;    ///< the client's end of kConnection
  Fd caller_;  ///< of kAccepted
  std::vector<std::function<void()>> undo_;
};

TEST_P(TcpMoveTest, ChangesHosts) {
  Destination destination;
  ASSERT_EQ(text(destination.run([&](BuildContext& ctx) -> Status {
              ctx.addresses_arrive_later = true;
              // That thread has a table of its own: through /proc it sees ours.
              const int there = ::open(
                  ("/proc/self/fd/" + std::to_string(network_->host(kDestination).network.get())).c_str(),
                  O_RDONLY | O_CLOEXEC);
              const bool moved = ::setns(there, CLONE_NEWNET) == 0;
              ::close(there);
              if (!moved) return fail_errno("setns", "the shell's thread");
              return {};
            })),
            "");
  const auto description = capture(nullptr);
  ASSERT_TRUE(description.ok()) << description.error().message();
  ASSERT_EQ(text(destination.prepare(description.value())), "");
  const auto message = capture(&source_->freeze());
  ASSERT_TRUE(message.ok()) << message.error().message();
  const auto state = state_of(message.value(), kConnection);
  EXPECT_EQ(state.kind(), wire::TcpState::CONNECTED);
  EXPECT_EQ(state.connection().receive_queue(), "question");
  EXPECT_EQ(state.connection().peer_closed(), GetParam().peer_closes);
  EXPECT_GT(state.connection().unsent(), 0u) << "the test shows less than it should";
  configure(kSource, "del");
  ASSERT_EQ(text(destination.finish(message.value())), "");
  configure(kDestination, "add");
  (void)network_->host(kClient).run("ip neigh flush dev eth0");
  undo_.clear();
  source_.reset();  // silent: the peer must not hear of it
  ASSERT_EQ(text(destination.resume()), "");
  const Fd server = destination.fd(kConnection);
  expect_alive(server.get());
  const Fd accepted = destination.fd(kAccepted);
  EXPECT_EQ(::send(caller_.get(), "hello", 5, MSG_NOSIGNAL), 5);
  EXPECT_EQ(read_all(accepted.get(), 5), "hello");
  for (const int number : {kListener, kConnection, kAccepted})
    EXPECT_EQ(get_int_option(destination.fd(number).get(), "test", SOL_SOCKET, SO_REUSEADDR).value(), 0);
  int no_delay = 0;
  socklen_t size = sizeof no_delay;
  EXPECT_EQ(::getsockopt(server.get(), IPPROTO_TCP, TCP_NODELAY, &no_delay, &size), 0);
  EXPECT_EQ(no_delay, 1);
  const test::AsHost there(network_->host(kClient).network.get());
  const Address service = address(GetParam().service, kPort);
  const Fd another(::socket(service.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(another.get(), service.get(), service.size), 0) << strerror(errno);
}

TEST_P(TcpMoveTest, GoesOnWhenGivenUp) {
  const auto message = capture(&source_->freeze());
  ASSERT_TRUE(message.ok()) << message.error().message();
  ASSERT_EQ(undo_.size(), 2u);
  undo();
  source_->thaw();
  const Fd copy = descriptor(kConnection);
  expect_alive(copy.get());
}

TEST_P(TcpMoveTest, CanBeCapturedAgainAfterAnUndo) {
  auto& frozen = source_->freeze();
  const auto first = capture(&frozen);
  undo();
  const auto second = capture(&frozen);
  ASSERT_TRUE(first.ok() && second.ok());
  const auto before = state_of(first.value(), kConnection);
  const auto after = state_of(second.value(), kConnection);
  EXPECT_EQ(before.options().SerializeAsString(), after.options().SerializeAsString());
  EXPECT_EQ(before.connection().receive_queue(), after.connection().receive_queue());
  undo();
  expect_alive(descriptor(kConnection).get());
}

TEST_P(TcpMoveTest, NeedsItsAddress) {
  intent_.moved_addresses.clear();
  const auto findings = source_->check();
  EXPECT_TRUE(any_fatal(findings));
  EXPECT_THAT(findings, Contains(Field(&Finding::remedy, HasSubstr(std::string("--move-address ") +
                                                                   GetParam().service + "/"))));
  EXPECT_EQ(capture(&source_->freeze()).error().kind, ErrorKind::kUnsupported);
  intent_ = {.moved_addresses = {GetParam().service}, .to_file = true};
  EXPECT_EQ(capture(nullptr).error().kind, ErrorKind::kUnsupported);
  EXPECT_TRUE(undo_.empty());
}

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

INSTANTIATE_TEST_SUITE_P(Kinds, TcpMoveTest,
                         testing::Values(Kind{"v4", "10.77.0.9", "10.77.0.3", "/24", false},
                                         Kind{"v4_half_closed", "10.77.0.9", "10.77.0.3", "/24", true},
                                         Kind{"v6", "fd77::9", "fd77::3", "/64", false},
                                         Kind{"v6_half_closed", "fd77::9", "fd77::3", "/64", true}),
                         [](const auto& kind) { return kind.param.name; });

// ---- not connected
// -----------------------------------------------------------------------------------------------

TEST_F(TcpTest, ListenersAndUnconnectedSockets) {
  Source source([] {
    const int on = 1;
    const int seconds = 33;
    const int segment = 1000;
    const Address local = address("127.0.0.1", 4711);
    put(must(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), 3);
    must(::setsockopt(3, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    must(::setsockopt(3, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds));
    must(::setsockopt(3, IPPROTO_TCP, TCP_DEFER_ACCEPT, &on, sizeof on));
    must(::setsockopt(3, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment));
    must(::bind(3, local.get(), local.size));
    must(::listen(3, 33));
    const Address any = address("::", 4712);
    put(must(::socket(AF_INET6, SOCK_STREAM, 0)), 4);
    must(::setsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    must(::setsockopt(4, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    must(::bind(4, any.get(), any.size));
    must(::listen(4, 5));
    put(must(::socket(AF_INET, SOCK_STREAM, 0)), 5);  // neither bound nor connected
    const Address bound = address("127.0.0.1", 4713);
    put(must(::socket(AF_INET, SOCK_STREAM, 0)), 6);
    must(::bind(6, bound.get(), bound.size));
  });
  EXPECT_FALSE(any_fatal(source.check()));
  const auto destination = expect_round_trip(source);
  tcp_info info{};
  socklen_t size = sizeof info;
  ASSERT_EQ(::getsockopt(destination->fd(3).get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0);
  EXPECT_EQ(info.tcpi_sacked, 33u);
}

TEST_F(TcpTest, AConnectionNotAcceptedYetIsABadInstant) {
  Source source([] {
    const Address local = address("127.0.0.1", 4714);
    put(must(::socket(AF_INET, SOCK_STREAM, 0)), 3);
    must(::bind(3, local.get(), local.size));
    must(::listen(3, 5));
  });
  const Address local = address("127.0.0.1", 4714);
  const Fd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(client.get(), local.get(), local.size), 0) << strerror(errno);
  EXPECT_TRUE(source.capture().ok()) << "a running process may accept it in time";
  source.freeze();
  const auto frozen = source.capture();
  ASSERT_FALSE(frozen.ok());
  EXPECT_EQ(frozen.error().kind, ErrorKind::kRetry);
  EXPECT_THAT(frozen.error().message(), HasSubstr("waits to be accepted"));
}

TEST_F(TcpTest, AConnectionWithinTheHostIsRefused) {
  const Address local = address("127.0.0.1", 4715);
  const Fd server = listener_at(local, 0);
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_STREAM, 0)), 3);
    must(::connect(3, local.get(), local.size));
  });
  EXPECT_THAT(source.check(), Contains(Field(&Finding::why, HasSubstr("on this host"))));
  EXPECT_EQ(source.capture().error().kind, ErrorKind::kUnsupported);
}

TEST_F(TcpTest, AConnectionThatEndedStaysEnded) {
  const Address local = address("127.0.0.1", 4716);
  const Fd server = listener_at(local, 0);
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_STREAM, 0)), 3);
    must(::connect(3, local.get(), local.size));
  });
  {
    const Fd accepted(::accept4(server.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const linger at_once{1, 0};
    ASSERT_EQ(::setsockopt(accepted.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
  }
  const auto destination = expect_round_trip(source);
  char byte = 0;
  EXPECT_EQ(::recv(destination->fd(3).get(), &byte, 1, MSG_DONTWAIT), 0) << strerror(errno);
}

}  // namespace
}  // namespace godwit::state
