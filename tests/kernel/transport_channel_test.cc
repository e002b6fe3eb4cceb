// Channels over real sockets. Nothing here passes or fails on how long it took.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <thread>

#include "engine/base/units.h"
#include "engine/transport/channel_set.h"
#include "engine/transport/listener.h"

namespace godwit::transport {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

using Bytes = std::vector<std::byte>;

Bytes pattern(size_t size, size_t seed = 0) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>((i + seed) * 31 + (i >> 8) + (i >> 16));
  return bytes;
}

struct Pair {
  std::unique_ptr<Channel> near;
  std::unique_ptr<Channel> far;
};

Pair connected(std::string_view address = "127.0.0.1:0") {
  Listener listener = Listener::create(address).take();
  Pair pair;
  pair.near = connect({parse_host_port(address).take().host, listener.port()}, 10s).take();
  pair.far = listener.accept(10s).take();
  return pair;
}

/// Shrinks both socket buffers, so that a writer meets a full one soon.
void shrink_buffers(const Pair& pair) {
  const int small = 16 << 10;
  ASSERT_EQ(::setsockopt(pair.near->fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
  ASSERT_EQ(::setsockopt(pair.far->fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
}

/// Bytes that the kernel holds for `channel` to read.
int readable(const Channel& channel) {
  int n = 0;
  EXPECT_EQ(::ioctl(channel.fd(), FIONREAD, &n), 0);
  return n;
}

/// Sends `sent` in pieces of the given sizes, over and over, and reads it in others at the far end.
void expect_transfer(const Pair& pair, const Bytes& sent, const std::vector<size_t>& writes,
                     const std::vector<size_t>& reads) {
  Bytes got(sent.size());
  {
    std::jthread reader([&] {
      std::span<std::byte> left(got);
      for (size_t i = 0; !left.empty(); ++i) {
        const size_t n = std::min(reads[i % reads.size()], left.size());
        const Status status = pair.far->read(left.first(n));
        ASSERT_TRUE(status.ok()) << status.error().message();
        left = left.subspan(n);
      }
    });
    std::span<const std::byte> left(sent);
    for (size_t i = 0; !left.empty(); ++i) {
      const size_t n = std::min(writes[i % writes.size()], left.size());
      const Status status = pair.near->write(left.first(n));
      ASSERT_TRUE(status.ok()) << status.error().message();
      left = left.subspan(n);
    }
    ASSERT_TRUE(pair.near->flush().ok());
  }
  EXPECT_TRUE(got == sent);
  EXPECT_EQ(pair.near->bytes_sent(), sent.size());
  EXPECT_EQ(pair.far->bytes_received(), sent.size());
}

TEST(Channel, CarriesLargeSpans) {
  expect_transfer(connected(), pattern(64_MiB), {1_MiB + 16, 3_MiB}, {16, 1_MiB});
}

TEST(Channel, GathersSmallSpansThroughItsRing) {
  // 24 MiB in pieces below the direct size: every byte goes through the gathered buffers.
  expect_transfer(connected(), pattern(24_MiB), {1, 4096, 63_KiB, 100}, {70_KiB, 1, 5000});
}

TEST(Channel, KeepsTheOrderWhenSmallAndLargeMix) {
  expect_transfer(connected(), pattern(48_MiB), {16, 1_MiB, 16, 50_KiB, 60_KiB, 60_KiB, 2_MiB, 7},
                  {16, 200_KiB});
}

TEST(Channel, KeepsTheOrderWhenTheSocketIsAlwaysFull) {
  const Pair pair = connected();
  shrink_buffers(pair);
  expect_transfer(pair, pattern(12_MiB), {60_KiB, 16, 60_KiB, 60_KiB, 300_KiB}, {9000});
}

TEST(Channel, ConnectsOverIpv6) {
  const Result<Listener> listener = Listener::create("[::1]:0");
  if (!listener.ok()) GTEST_SKIP() << "no IPv6 on this host: " << listener.error().message();
  expect_transfer(connected("[::1]:0"), pattern(1_MiB), {1000}, {1000});
}

TEST(Channel, ConnectsByName) {
  const Pair pair = connected("localhost:0");
  EXPECT_TRUE(pair.near->peer().is_loopback());
}

TEST(Channel, TurnsNagleOffAtBothEnds) {
  const Pair pair = connected();
  for (const Channel* channel : {pair.near.get(), pair.far.get()}) {
    int on = 0;
    socklen_t size = sizeof on;
    ASSERT_EQ(::getsockopt(channel->fd(), IPPROTO_TCP, TCP_NODELAY, &on, &size), 0);
    EXPECT_NE(on, 0);
  }
}

TEST(Channel, NothingLeavesBeforeAFlushAndAllAfterIt) {
  const Pair pair = connected();
  ASSERT_TRUE(pair.near->write(pattern(100)).ok());
  EXPECT_EQ(pair.near->bytes_sent(), 0u);
  EXPECT_EQ(readable(*pair.far), 0);
  ASSERT_TRUE(pair.near->flush().ok());
  EXPECT_EQ(pair.near->bytes_sent(), 100u);
  Bytes got(100);
  ASSERT_TRUE(pair.far->read(got).ok());
  EXPECT_EQ(got, pattern(100));
}

TEST(Channel, WritesGoOnWhileThePeerReadsNothing) {
  const Pair pair = connected();
  shrink_buffers(pair);
  // 3 MiB fit in the gathered buffers; nobody reads, and no call blocks.
  const Bytes sent = pattern(3_MiB);
  for (size_t at = 0; at < sent.size(); at += 32_KiB)
    ASSERT_TRUE(pair.near->write(std::span(sent).subspan(at, 32_KiB)).ok());
  Bytes got(sent.size());
  std::jthread reader([&] { ASSERT_TRUE(pair.far->read(got).ok()); });
  ASSERT_TRUE(pair.near->flush().ok());
  reader.join();
  EXPECT_TRUE(got == sent);
}

TEST(Channel, WhatAWriterThreadLeftBehindGoesOutWithTheNextFlush) {
  const Pair pair = connected();
  shrink_buffers(pair);
  const Bytes sent = pattern(3_MiB);
  std::jthread([&] {
    for (size_t at = 0; at < sent.size(); at += 32_KiB)
      ASSERT_TRUE(pair.near->write(std::span(sent).subspan(at, 32_KiB)).ok());
  }).join();
  Bytes got(sent.size());
  std::jthread reader([&] { ASSERT_TRUE(pair.far->read(got).ok()); });
  ASSERT_TRUE(pair.near->flush().ok());
  reader.join();
  EXPECT_TRUE(got == sent);
}

TEST(Channel, APeerThatClosesMidwayIsGoneByName) {
  Pair pair = connected();
  ASSERT_TRUE(pair.near->write(pattern(100)).ok());
  ASSERT_TRUE(pair.near->flush().ok());
  const std::string name = Endpoint::local_of(pair.near->fd()).take().text();
  pair.near.reset();
  Bytes got(200);
  const Status status = pair.far->read(got);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::kPeerGone);
  EXPECT_EQ(status.error().subject, name);
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + 100, pattern(100).begin()));
}

TEST(Channel, AWriterLearnsThatThePeerLeft) {
  for (const size_t piece : {1_MiB, 10_KiB}) {
    Pair pair = connected();
    std::jthread leaver([&] {
      Bytes some(3_MiB);
      ASSERT_TRUE(pair.far->read(some).ok());
      pair.far.reset();
    });
    Status status;
    while (status.ok()) status = pair.near->write(pattern(piece));
    EXPECT_EQ(status.error().kind, ErrorKind::kPeerGone) << status.error().message();
    EXPECT_EQ(status.error().subject, pair.near->peer_name());
  }
}

TEST(Channel, ShutdownOfTheWritingSideLetsAnswersThrough) {
  const Pair pair = connected();
  ASSERT_TRUE(pair.near->write(pattern(10)).ok());
  ASSERT_TRUE(pair.near->flush().ok());
  ASSERT_TRUE(pair.near->shutdown_write().ok());
  Bytes got(10);
  ASSERT_TRUE(pair.far->read(got).ok());
  EXPECT_EQ(pair.far->read(got).error().kind, ErrorKind::kPeerGone);
  ASSERT_TRUE(pair.far->write(pattern(10)).ok());
  ASSERT_TRUE(pair.far->flush().ok());
  EXPECT_TRUE(pair.near->read(got).ok());
}

TEST(Channel, ASilentPeerRunsIntoTheReadTimeout) {
  const Pair pair = connected();
  ASSERT_TRUE(pair.near->set_read_timeout(20ms).ok());
  for (const size_t size : {1_KiB, 1_MiB}) {
    Bytes got(size);
    const Status status = pair.near->read(got);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().kind, ErrorKind::kTimeout);
    EXPECT_EQ(status.error().subject, pair.near->peer_name());
  }
}

TEST(Channel, TheDeadPeerLimitsAreSet) {
  const Pair pair = connected();
  ASSERT_TRUE(pair.near->set_dead_after(6s).ok());
  unsigned millis = 0;
  socklen_t size = sizeof millis;
  ASSERT_EQ(::getsockopt(pair.near->fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, &millis, &size), 0);
  EXPECT_EQ(millis, 6000u);
}

TEST(Channel, CancelWakesAReader) {
  const Pair pair = connected();
  for (const size_t size : {1_KiB, 1_MiB}) {
    const Pair link = connected();
    Status status;
    {
      Bytes got(size);
      std::jthread reader([&] { status = link.near->read(got); });
      link.near->cancel();
      reader.join();
    }
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().kind, ErrorKind::kCancelled);
    Bytes byte(1);
    EXPECT_EQ(link.far->read(byte).error().kind, ErrorKind::kPeerGone);
  }
}

TEST(Channel, CancelWakesAWriter) {
  for (const size_t piece : {1_MiB, 10_KiB}) {
    const Pair pair = connected();
    Status status;
    std::atomic<uint64_t> writes{0};
    std::jthread writer([&] {
      const Bytes bytes = pattern(piece);
      while (status.ok()) {
        status = pair.near->write(bytes);
        writes.fetch_add(1);
        writes.notify_one();
      }
    });
    writes.wait(0);
    pair.near->cancel();
    writer.join();
    EXPECT_EQ(status.error().kind, ErrorKind::kCancelled) << status.error().message();
    EXPECT_EQ(pair.near->flush().error().kind, ErrorKind::kCancelled);
  }
}

TEST(Channel, CancelEndsTheWaitForBandwidth) {
  const Pair pair = connected();
  const auto limiter = std::make_shared<RateLimiter>();
  limiter->set_rate(1);
  pair.near->set_limiter(limiter);
  ASSERT_TRUE(pair.near->write(pattern(1_MiB)).ok()) << "a first piece passes, the second owes a megasecond";
  Status status;
  {
    std::jthread writer([&] { status = pair.near->write(pattern(1_MiB)); });
    pair.near->cancel();
  }
  EXPECT_EQ(status.error().kind, ErrorKind::kCancelled);
}

TEST(Channel, ADestroyedChannelWaitsForTheKernelToLetGoOfItsBuffers) {
  Pair pair = connected();
  shrink_buffers(pair);
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(pair.near->write(pattern(50_KiB)).ok());
  pair.near.reset();
  Bytes got(64_MiB);
  EXPECT_EQ(pair.far->read(got).error().kind, ErrorKind::kPeerGone);
}

TEST(ChannelSet, SharesALimitAndCountsTogether) {
  std::vector<std::unique_ptr<Channel>> near, far;
  for (int i = 0; i < 3; ++i) {
    Pair pair = connected();
    near.push_back(std::move(pair.near));
    far.push_back(std::move(pair.far));
  }
  ChannelSet set(std::move(near));
  const Nanos begin = monotonic_now();
  set.set_bandwidth(10'000'000);
  std::vector<std::jthread> readers;
  for (auto& channel : far)
    readers.emplace_back([&channel] {
      Bytes got(1'000'000);
      ASSERT_TRUE(channel->read(got).ok());
    });
  for (size_t i = 0; i < set.size(); ++i)
    for (size_t k = 0; k < 10; ++k) ASSERT_TRUE(set.at(i).write(pattern(100'000)).ok());
  ASSERT_TRUE(set.flush().ok());
  readers.clear();
  const double seconds = to_seconds(monotonic_now() - begin);
  std::printf("3 MB at a limit of 10 MB/s took %.3f s\n", seconds);
  EXPECT_EQ(set.bytes_sent(), 3'000'000u);
  set.cancel();
  EXPECT_EQ(set.flush().error().kind, ErrorKind::kCancelled);
}

TEST(Listener, ReportsThePortItTook) {
  Listener listener = Listener::create("127.0.0.1:0").take();
  EXPECT_GT(listener.port(), 0);
  EXPECT_EQ(listener.local().text(), fmt::format("127.0.0.1:{}", listener.port()));
  EXPECT_TRUE(listener.local().is_loopback());
  EXPECT_FALSE(Listener::create("0.0.0.0:0").take().local().is_loopback());
  const Result<Listener> second = Listener::create(listener.local().text());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().err, EADDRINUSE);
}

TEST(Listener, GivesUpInTimeAndOnCancel) {
  Listener listener = Listener::create("127.0.0.1:0").take();
  EXPECT_EQ(listener.accept(1ms).error().kind, ErrorKind::kTimeout);
  std::jthread canceller([&] { listener.cancel(); });
  EXPECT_EQ(listener.accept(-1ns).error().kind, ErrorKind::kCancelled);
  canceller.join();
  EXPECT_EQ(listener.accept(1s).error().kind, ErrorKind::kCancelled);
}

TEST(Connect, SaysWhoCouldNotBeReached) {
  uint16_t port = 0;
  { port = Listener::create("127.0.0.1:0").take().port(); }
  const auto refused = connect({"127.0.0.1", port}, 5s);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kPeerGone);
  EXPECT_EQ(refused.error().subject, fmt::format("127.0.0.1:{}", port));
  EXPECT_THAT(refused.error().message(), HasSubstr("refused"));
}

}  // namespace
}  // namespace godwit::transport
