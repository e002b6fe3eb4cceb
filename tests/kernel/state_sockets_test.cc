// Unix and UDP sockets against the real kernel, as state_fds_test does for other descriptors.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "engine/state/unix_address.h"
#include "tests/kernel/state_fds_fixture.h"

namespace godwit::state {
namespace {

using testing::Contains;
using testing::Field;
using testing::HasSubstr;

class SocketsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: ptrace of a child, namespaces";
    path_ = testing::TempDir() + "godwit_socket_" + std::to_string(::getpid());
    ::unlink(path_.c_str());
  }
  void TearDown() override { ::unlink(path_.c_str()); }
  std::string path_;
};

void pair_at(int type, int first, int second) {
  int ends[2];
  must(::socketpair(AF_UNIX, type, 0, ends));
  put(ends[0], first);
  put(ends[1], second);
}

void send_text(int fd, std::string_view data) {
  must(static_cast<int>(::send(fd, data.data(), data.size(), 0)));
}

void call_with_name(int (*call)(int, const sockaddr*, socklen_t), int fd, std::string_view name) {
  sockaddr_un address{};
  const auto length = fill_unix_address(name, "test", address);
  must(call(fd, reinterpret_cast<const sockaddr*>(&address), length.value()));
}

void bind_to(int fd, std::string_view name) {
  call_with_name(::bind, fd, name);
}

std::string receive(const Fd& fd) {
  std::array<char, 300'000> buffer;
  const ssize_t got = ::recv(fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  return got < 0 ? std::string(strerror(errno)) : std::string(buffer.data(), static_cast<size_t>(got));
}

void expect_retry(Source& source, const std::string& words) {
  source.freeze();
  const auto captured = source.capture();
  ASSERT_FALSE(captured.ok());
  EXPECT_EQ(captured.error().kind, ErrorKind::kRetry);
  EXPECT_THAT(captured.error().message(), HasSubstr(words));
}

TEST_F(SocketsTest, PairsKeepWhatIsQueued) {
  const std::string large(100'000, 'L');
  Source source([&] {
    pair_at(SOCK_STREAM, 3, 4);
    send_text(3, "hello ");
    send_text(3, "world");
    send_text(4, large);
    pair_at(SOCK_DGRAM, 5, 6);
    send_text(5, "one");
    send_text(5, "two");
    send_text(5, "three");
    send_text(6, "back");
    pair_at(SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 7, 8);
    send_text(8, "first");
    send_text(8, "second");
  });
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(receive(destination->fd(4)), "hello world");
  EXPECT_EQ(receive(destination->fd(3)), large);
  const Fd datagrams = destination->fd(6);
  for (const char* expected : {"one", "two", "three", "Resource temporarily unavailable"})
    EXPECT_EQ(receive(datagrams), expected);
  EXPECT_EQ(receive(destination->fd(5)), "back");
  const Fd packets = destination->fd(7);
  EXPECT_EQ(receive(packets), "first");
  EXPECT_EQ(receive(packets), "second");
  // And the original has it all, too.
  const Fd original = source.process().pidfd().get_fd(6).take();
  for (const char* expected : {"one", "two", "three", "Resource temporarily unavailable"})
    EXPECT_EQ(receive(original), expected);
}

TEST_F(SocketsTest, EmptyDatagramsCountToo) {
  Source source([&] {
    pair_at(SOCK_DGRAM, 5, 6);
    for (const char* data : {"one", "", "three", ""}) send_text(5, data);
  });
  Destination destination;
  source.freeze();
  ASSERT_EQ(text(destination.finish(source.capture().value())), "");
  const Fd rebuilt = destination.fd(6);
  const Fd original = source.process().pidfd().get_fd(6).take();
  for (const char* expected : {"one", "", "three", "", "Resource temporarily unavailable"}) {
    EXPECT_EQ(receive(rebuilt), expected);
    EXPECT_EQ(receive(original), expected);
  }
}

TEST_F(SocketsTest, EndsOfPairs) {
  Source source([&] {
    pair_at(SOCK_STREAM, 3, 4);
    send_text(4, "last words");
    ::close(4);
    pair_at(SOCK_STREAM, 5, 6);
    send_text(5, "before");
    must(::shutdown(5, SHUT_WR));
    pair_at(SOCK_DGRAM, 7, 8);
    must(::dup2(8, 9));
  });
  const auto destination = expect_round_trip(source);
  const Fd orphan = destination->fd(3);
  EXPECT_EQ(receive(orphan), "last words");
  EXPECT_EQ(receive(orphan), "");
  const Fd half = destination->fd(6);
  EXPECT_EQ(receive(half), "before");
  EXPECT_EQ(receive(half), "");
  EXPECT_EQ(::send(half.get(), "still", 5, MSG_NOSIGNAL), 5);
  EXPECT_EQ(receive(destination->fd(5)), "still");
}

TEST_F(SocketsTest, OptionsOfASocket) {
  Source source([&] {
    pair_at(SOCK_STREAM, 3, 4);
    const int size = 50'000;
    const int on = 1;
    const timeval patience{3, 500'000};
    must(::setsockopt(3, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    must(::setsockopt(3, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience));
    must(::setsockopt(4, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    must(::setsockopt(4, SOL_SOCKET, SO_PEEK_OFF, &on, sizeof on));
    send_text(3, "with credentials");
    sock_filter accept_all{BPF_RET | BPF_K, 0, 0, 0xffff};
    const sock_fprog program{1, &accept_all};
    must(::setsockopt(4, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  });
  const auto destination = expect_round_trip(source);
  char byte = 0;
  alignas(cmsghdr) char control[256];
  iovec part{&byte, 1};
  msghdr message{nullptr, 0, &part, 1, control, sizeof control, 0};
  ASSERT_EQ(::recvmsg(destination->fd(4).get(), &message, MSG_DONTWAIT), 1);
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  ASSERT_NE(header, nullptr);
  ASSERT_EQ(header->cmsg_type, SCM_CREDENTIALS);
  ucred credentials{};
  std::memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
  EXPECT_EQ(credentials.pid, destination->pid());
}

TEST_F(SocketsTest, PeerCredentialsNameTheProcessAndItsUser) {
  Source source([&] {
    must(::setegid(1234));
    must(::seteuid(2345));
    pair_at(SOCK_STREAM, 3, 4);
  });
  const auto destination = expect_round_trip(source);
  ucred credentials{};
  socklen_t length = sizeof credentials;
  ASSERT_EQ(::getsockopt(destination->fd(3).get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length), 0);
  EXPECT_EQ(credentials.pid, destination->pid());
  EXPECT_EQ(credentials.uid, 2345U);
  EXPECT_EQ(credentials.gid, 1234U);
}

TEST_F(SocketsTest, ListeningSockets) {
  const std::string abstract = std::string(1, '\0') + "godwit-test";
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_STREAM, 0)), 3);
    bind_to(3, path_);
    must(::chmod(path_.c_str(), 0622));
    must(::chown(path_.c_str(), 77, 88));
    must(::listen(3, 17));
    put(must(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0)), 4);
    bind_to(4, abstract);
    must(::listen(4, 5));
  });
  const auto destination = expect_round_trip(source);
  // The name leads to the destination's socket now.
  const Fd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  const auto length = fill_unix_address(path_, "test", address);
  // A path is looked up in the file system, whatever the network namespace.
  ASSERT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), length.value()), 0)
      << strerror(errno);
  const Fd accepted(::accept4(destination->fd(3).get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  EXPECT_TRUE(accepted.valid());
  ucred credentials{};
  socklen_t size = sizeof credentials;
  ASSERT_EQ(::getsockopt(client.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size), 0);
  EXPECT_EQ(credentials.pid, destination->pid()) << "who listens is the process";
}

TEST_F(SocketsTest, UntilTheResumeTheFileIsTheSources) {
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_STREAM, 0)), 3);
    bind_to(3, path_);
    must(::listen(3, 1));
  });
  struct stat before {};
  ASSERT_EQ(::lstat(path_.c_str(), &before), 0);
  Destination destination;
  source.freeze();
  ASSERT_EQ(text(destination.finish(source.capture().value())), "");
  struct stat after {};
  ASSERT_EQ(::lstat(path_.c_str(), &after), 0);
  EXPECT_EQ(before.st_ino, after.st_ino);
}

TEST_F(SocketsTest, DatagramSocketsWithNames) {
  const std::string abstract = std::string(1, '\0') + "godwit-datagrams";
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_DGRAM, 0)), 3);
    bind_to(3, path_);
    put(must(::socket(AF_UNIX, SOCK_DGRAM, 0)), 4);
    bind_to(4, abstract);
    put(must(::socket(AF_UNIX, SOCK_DGRAM, 0)), 5);
    call_with_name(::connect, 5, path_);
    send_text(5, "through the path");
    call_with_name(::connect, 5, abstract);
    send_text(5, "by the name");
    put(must(::socket(AF_UNIX, SOCK_DGRAM, 0)), 6);  // neither name nor peer
  });
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(receive(destination->fd(3)), "through the path");
  EXPECT_EQ(receive(destination->fd(4)), "by the name");
  EXPECT_EQ(::send(destination->fd(5).get(), "more", 4, 0), 4);
  EXPECT_EQ(receive(destination->fd(4)), "more");
}

TEST_F(SocketsTest, ADatagramSocketConnectedToAServiceFindsItAgain) {
  const Fd service(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  bind_to(service.get(), path_);
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_DGRAM, 0)), 3);
    call_with_name(::connect, 3, path_);
  });
  EXPECT_FALSE(any_fatal(source.check()));
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(::send(destination->fd(3).get(), "log", 3, 0), 3);
  EXPECT_EQ(receive(service), "log");
}

TEST_F(SocketsTest, AConnectionToAnotherProcessIsRefused) {
  const Fd service(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  bind_to(service.get(), path_);
  ASSERT_EQ(::listen(service.get(), 1), 0);
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_STREAM, 0)), 3);
    call_with_name(::connect, 3, path_);
  });
  const Fd accepted(::accept4(service.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const auto findings = source.check();
  ASSERT_TRUE(any_fatal(findings));
  EXPECT_THAT(findings, Contains(Field(&Finding::why, HasSubstr("pid " + std::to_string(::getpid())))));
  EXPECT_EQ(source.capture().error().kind, ErrorKind::kUnsupported);
}

TEST_F(SocketsTest, DescriptorsUnderWayAreABadInstant) {
  Source source([&] {
    pair_at(SOCK_STREAM, 3, 4);
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    char byte = 'x';
    iovec part{&byte, 1};
    msghdr message{nullptr, 0, &part, 1, control, sizeof control, 0};
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), "\3\0\0\0", sizeof(int));
    must(static_cast<int>(::sendmsg(3, &message, 0)));
  });
  expect_retry(source, "descriptors are under way");
}

TEST_F(SocketsTest, AConnectionNotAcceptedYetIsABadInstant) {
  Source source([&] {
    put(must(::socket(AF_UNIX, SOCK_STREAM, 0)), 3);
    bind_to(3, path_);
    must(::listen(3, 1));
  });
  const Fd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  call_with_name(::connect, client.get(), path_);
  EXPECT_FALSE(any_fatal(source.check()));
  expect_retry(source, "not accepted");
}

// ---- udp
// ---------------------------------------------------------------------------------------------------------

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

void bind_udp(int fd, uint16_t port) {
  const sockaddr_in address = loopback(port);
  must(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address));
}

TEST_F(SocketsTest, UdpSockets) {
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)), 3);
    const int on = 1;
    const int ttl = 17;
    const int tos = 0x10;
    must(::setsockopt(3, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    must(::setsockopt(3, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    must(::setsockopt(3, IPPROTO_IP, IP_TOS, &tos, sizeof tos));
    must(::setsockopt(3, SOL_SOCKET, SO_BROADCAST, &on, sizeof on));
    bind_udp(3, 0);
    put(must(::socket(AF_INET, SOCK_DGRAM, 0)), 4);
    sockaddr_in server{};
    socklen_t length = sizeof server;
    must(::getsockname(3, reinterpret_cast<sockaddr*>(&server), &length));
    must(::connect(4, reinterpret_cast<const sockaddr*>(&server), length));
    put(must(::socket(AF_INET6, SOCK_DGRAM, 0)), 5);
    must(::setsockopt(5, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    must(::bind(5, reinterpret_cast<const sockaddr*>(&any), sizeof any));
    put(must(::socket(AF_INET, SOCK_DGRAM, 0)), 6);  // not bound
  });
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(::send(destination->fd(4).get(), "ping", 4, 0), 4);
  EXPECT_EQ(receive(destination->fd(3)), "ping");
}

TEST_F(SocketsTest, UdpAddressesThatComeLater) {
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_DGRAM, 0)), 3);
    bind_udp(3, 0);
  });
  Destination destination;
  source.freeze();
  wire::DescriptorTable table;
  ASSERT_TRUE(table.ParseFromString(source.capture().value()));
  wire::UdpState state;
  ASSERT_TRUE(state.ParseFromString(table.descriptions(0).payload()));
  sockaddr_in local = loopback(4321);
  local.sin_addr.s_addr = ::inet_addr("192.0.2.7");
  sockaddr_in remote = local;
  remote.sin_addr.s_addr = ::inet_addr("127.0.0.1");
  state.set_local(&local, sizeof local);
  state.set_remote(&remote, sizeof remote);
  table.mutable_descriptions(0)->set_payload(state.SerializeAsString());
  const Status without = destination.finish(table.SerializeAsString());
  ASSERT_FALSE(without.ok());
  EXPECT_EQ(without.error().err, EADDRNOTAVAIL);
  EXPECT_THAT(without.error().message(), HasSubstr("--move-address"));
  const Status with = destination.run([&](BuildContext& ctx) {
    ctx.addresses_arrive_later = true;
    return finish_descriptors(ctx, table.SerializeAsString());
  });
  EXPECT_EQ(text(with), "");
  int transparent = 1;
  socklen_t length = sizeof transparent;
  EXPECT_EQ(::getsockopt(destination.fd(3).get(), IPPROTO_IP, IP_TRANSPARENT, &transparent, &length), 0);
  EXPECT_EQ(transparent, 0);
}

TEST_F(SocketsTest, AnUnreadDatagramIsABadInstant) {
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_DGRAM, 0)), 3);
    bind_udp(3, 0);
    sockaddr_in self{};
    socklen_t length = sizeof self;
    must(::getsockname(3, reinterpret_cast<sockaddr*>(&self), &length));
    must(static_cast<int>(::sendto(3, "", 0, 0, reinterpret_cast<const sockaddr*>(&self), length)));
  });
  EXPECT_FALSE(any_fatal(source.check()));
  expect_retry(source, "datagram");
}

TEST_F(SocketsTest, AMulticastGroupIsRefused) {
  Source source([&] {
    put(must(::socket(AF_INET, SOCK_DGRAM, 0)), 3);
    ip_mreqn group{};
    group.imr_multiaddr.s_addr = ::inet_addr("239.1.2.3");
    group.imr_ifindex = 1;
    must(::setsockopt(3, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
  });
  EXPECT_THAT(source.check(), Contains(Field(&Finding::what, HasSubstr("multicast"))));
  EXPECT_EQ(source.capture().error().kind, ErrorKind::kUnsupported);
}

TEST_F(SocketsTest, OtherFamiliesAreNamed) {
  Source source([&] {
    put(must(::socket(AF_NETLINK, SOCK_RAW, 0)), 3);
    put(must(::socket(AF_PACKET, SOCK_DGRAM, 0)), 4);
  });
  const auto findings = source.check();
  EXPECT_THAT(findings, Contains(Field(&Finding::what, "a netlink socket")));
  EXPECT_THAT(findings, Contains(Field(&Finding::what, "a packet socket")));
  // One that was not there when it was checked may be gone in a moment.
  expect_retry(source, "netlink");
}

}  // namespace
}  // namespace godwit::state
