// The parts of the transport that need no network: the connection in memory, the bandwidth limit, who gets
// which address.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "engine/transport/channel_set.h"
#include "engine/transport/loopback.h"
#include "engine/transport/rate_limiter.h"
#include "engine/transport/socket.h"

namespace godwit::transport {
namespace {

using namespace std::chrono_literals;

std::vector<std::byte> pattern(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + (i >> 8));
  return bytes;
}

TEST(Loopback, CarriesMoreThanItHoldsInBothDirections) {
  const Loopback link = make_loopback(1000);
  const std::vector<std::byte> sent = pattern(100'000);
  std::jthread echo([&] {
    std::vector<std::byte> got(sent.size());
    ASSERT_TRUE(link.b->read(got).ok());
    ASSERT_TRUE(link.b->write(got).ok());
  });
  std::vector<std::byte> back(sent.size());
  ASSERT_TRUE(link.a->write(sent).ok());
  ASSERT_TRUE(link.a->flush().ok());
  ASSERT_TRUE(link.a->read(back).ok());
  EXPECT_EQ(back, sent);
}

TEST(Loopback, WhatWasWrittenBeforeACloseIsStillRead) {
  const Loopback link = make_loopback();
  ASSERT_TRUE(link.a->write(pattern(10)).ok());
  link.a->close();
  std::vector<std::byte> got(10);
  ASSERT_TRUE(link.b->read(got).ok());
  EXPECT_EQ(got, pattern(10));
  EXPECT_EQ(link.b->read(got).error().kind, ErrorKind::kPeerGone);
  EXPECT_EQ(link.b->write(got).error().kind, ErrorKind::kPeerGone);
  EXPECT_EQ(link.b->flush().error().kind, ErrorKind::kPeerGone);
}

TEST(Loopback, ACloseWakesABlockedWriter) {
  const Loopback link = make_loopback(10);
  std::jthread reader([&] {
    std::vector<std::byte> some(15);
    ASSERT_TRUE(link.b->read(some).ok());
    link.b->close();
  });
  EXPECT_EQ(link.a->write(pattern(1000)).error().kind, ErrorKind::kPeerGone);
}

TEST(Loopback, ACancelIsToldFromAClose) {
  const Loopback link = make_loopback(10);
  Status read;
  {
    std::jthread reader([&] {
      std::vector<std::byte> byte(1);
      read = link.a->read(byte);
    });
    link.a->cancel();
  }
  EXPECT_EQ(read.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(link.a->write(pattern(1)).error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(link.b->write(pattern(1)).error().kind, ErrorKind::kPeerGone);
}

TEST(TokenBucket, WithoutALimitNothingWaits) {
  TokenBucket bucket;
  EXPECT_EQ(bucket.take(uint64_t{1} << 50, 1s), 0ns);
  EXPECT_EQ(bucket.take(uint64_t{1} << 50, 1s), 0ns);
}

TEST(TokenBucket, TheNextPieceWaitsUntilTheLastIsPaid) {
  TokenBucket bucket;
  bucket.set_rate(1000);
  EXPECT_EQ(bucket.take(500, 10s), 0ns) << "a piece of any size passes; 50 ms are saved up";
  const Nanos wait = bucket.take(1, 10s);
  EXPECT_NEAR(to_seconds(wait), 0.45, 1e-6);
  EXPECT_EQ(bucket.take(1, 10s + 451ms), 0ns);
}

TEST(TokenBucket, OverTimeTheRateHolds) {
  TokenBucket bucket;
  bucket.set_rate(1'000'000);
  Nanos now = 5s;
  uint64_t sent = 0;
  while (now < 15s) {
    const Nanos wait = bucket.take(10'000, now);
    if (wait == 0ns) sent += 10'000;
    now += wait;
  }
  EXPECT_NEAR(static_cast<double>(sent), 10e6, 0.1e6);
}

TEST(TokenBucket, ARaisedRateShortensTheWait) {
  TokenBucket bucket;
  bucket.set_rate(1000);
  EXPECT_EQ(bucket.take(100'000, 1s), 0ns);
  EXPECT_GT(bucket.take(1, 1s), 90s);
  bucket.set_rate(1'000'000);
  EXPECT_LT(bucket.take(1, 1s), 1s);
  bucket.set_rate(0);
  EXPECT_EQ(bucket.take(1, 1s), 0ns);
}

TEST(RateLimiter, AStoppedWaiterReturns) {
  RateLimiter limiter;
  std::atomic<bool> stop{false};
  limiter.set_rate(1);
  ASSERT_TRUE(limiter.acquire(1'000'000'000, stop));
  bool got = true;
  {
    std::jthread waiter([&] { got = limiter.acquire(1, stop); });
    stop = true;
    limiter.wake();
  }
  EXPECT_FALSE(got);
}

TEST(RateLimiter, LiftingTheLimitReleasesAWaiter) {
  RateLimiter limiter;
  const std::atomic<bool> stop{false};
  limiter.set_rate(1);
  ASSERT_TRUE(limiter.acquire(1'000'000'000, stop));
  bool got = false;
  {
    std::jthread waiter([&] { got = limiter.acquire(1, stop); });
    limiter.set_rate(0);
  }
  EXPECT_TRUE(got);
}

TEST(HostPort, IsReadAsPeopleWriteIt) {
  const auto check = [](std::string_view text, std::string_view host, uint16_t port) {
    const HostPort got = parse_host_port(text).take();
    EXPECT_EQ(got.host, host);
    EXPECT_EQ(got.port, port);
  };
  check("10.0.0.1:7001", "10.0.0.1", 7001);
  check("[fe80::1%eth0]:1", "fe80::1%eth0", 1);
  check("host.example:65535", "host.example", 65535);
  check(":0", "", 0);
  for (const char* wrong : {"", "host", "host:", "host:x", "host:65536", "host:-1", "::1", "::1:80", "[]:1",
                            "[::1]", "[::1:1", "[::1]x:1"}) {
    const Result<HostPort> got = parse_host_port(wrong);
    ASSERT_FALSE(got.ok()) << wrong;
    EXPECT_EQ(got.error().kind, ErrorKind::kUsage);
  }
}

TEST(Endpoint, KnowsLoopbackAndPrintsItself) {
  const auto is_loopback = [](const char* host) {
    return resolve({host, 7}, false).take().front().is_loopback();
  };
  EXPECT_TRUE(is_loopback("127.0.0.1"));
  EXPECT_TRUE(is_loopback("127.200.0.9"));
  EXPECT_TRUE(is_loopback("::1"));
  EXPECT_TRUE(is_loopback("::ffff:127.0.0.1"));
  EXPECT_FALSE(is_loopback("10.0.0.1"));
  EXPECT_FALSE(is_loopback("0.0.0.0"));
  EXPECT_FALSE(is_loopback("::"));
  EXPECT_FALSE(is_loopback("::ffff:10.0.0.1"));
  EXPECT_FALSE(Endpoint().is_loopback());
  EXPECT_EQ(resolve({"::1", 7}, false).take().front().text(), "[::1]:7");
  EXPECT_EQ(resolve({"10.0.0.1", 7}, false).take().front().text(), "10.0.0.1:7");
}

}  // namespace
}  // namespace godwit::transport
