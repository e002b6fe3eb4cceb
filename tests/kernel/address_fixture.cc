#include "tests/kernel/address_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

namespace godwit::address {
namespace {

constexpr uint16_t kPort = 7070;

socklen_t fill(const IpAddress& ip, sockaddr_storage& name) {
  name = {};
  if (ip.family() == Family::kInet) {
    auto* in = reinterpret_cast<sockaddr_in*>(&name);
    in->sin_family = AF_INET;
    in->sin_port = htons(kPort);
    std::memcpy(&in->sin_addr, ip.bytes().data(), ip.size());
    return sizeof(sockaddr_in);
  }
  auto* in6 = reinterpret_cast<sockaddr_in6*>(&name);
  in6->sin6_family = AF_INET6;
  in6->sin6_port = htons(kPort);
  std::memcpy(&in6->sin6_addr, ip.bytes().data(), ip.size());
  return sizeof(sockaddr_in6);
}

Fd make_socket(const test::NetworkHost& host, Family family) {
  const test::AsHost inside(host.network.get());
  return Fd(::socket(static_cast<int>(family), SOCK_STREAM | SOCK_CLOEXEC, 0));
}

}  // namespace

void AddressTest::start_service(const std::string& service) {
  service_ = ServiceAddress::parse(service).take();
  (void)host(0).run(fmt::format("ip addr add {}/{} dev {}{}", service_.ip.to_string(), service_.prefix_length,
                                service_.device, service_.ip.family() == Family::kInet6 ? " nodad" : ""));
  sockaddr_storage name;
  const socklen_t size = fill(service_.ip, name);
  const Fd listener = make_socket(host(0), service_.ip.family());
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&name), size), 0) << errno;
  ASSERT_EQ(::listen(listener.get(), 8), 0);
  Fd client = make_socket(host(kClient), service_.ip.family());
  ASSERT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&name), size), 0) << errno;
  Fd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(accepted.valid());
  server_ = std::make_unique<test::EchoServer>(std::move(accepted));
  client_ = std::make_unique<test::StreamClient>(std::move(client));
}

}  // namespace godwit::address
