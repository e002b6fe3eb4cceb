// Encrypted channels over real sockets. Nothing here passes or fails on how long it took.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "engine/base/units.h"
#include "engine/transport/channel_set.h"
#include "engine/transport/listener.h"
#include "tests/support/key_files.h"

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
  std::unique_ptr<Channel> near, far;
};

class ChannelTls : public testing::Test {
 protected:
  Pair connected() {
    Listener listener = Listener::create("127.0.0.1:0").take();
    Pair pair;
    pair.near = connect({"127.0.0.1", listener.port()}, 10s).take();
    pair.far = listener.accept(10s).take();
    return pair;
  }
  Pair secured() {
    Pair pair = connected();
    Status far;
    {
      const std::jthread server([&] { far = pair.far->start_tls(credentials_, TlsRole::kServer, 30s); });
      const Status near = pair.near->start_tls(credentials_, TlsRole::kClient, 30s);
      EXPECT_TRUE(near.ok()) << near.error().message();
    }
    EXPECT_TRUE(far.ok()) << far.error().message();
    return pair;
  }
  KeyFiles keys_;
  std::shared_ptr<const Credentials> credentials_ = keys_.psk();
};

void send(Channel& channel, const Bytes& sent, const std::vector<size_t>& sizes) {
  std::span<const std::byte> left(sent);
  for (size_t i = 0; !left.empty(); ++i) {
    const size_t n = std::min(sizes[i % sizes.size()], left.size());
    const Status status = channel.write(left.first(n));
    ASSERT_TRUE(status.ok()) << status.error().message();
    left = left.subspan(n);
  }
  ASSERT_TRUE(channel.flush().ok());
}

void expect(Channel& channel, const Bytes& wanted, const std::vector<size_t>& sizes) {
  Bytes got(wanted.size());
  std::span<std::byte> left(got);
  for (size_t i = 0; !left.empty(); ++i) {
    const size_t n = std::min(sizes[i % sizes.size()], left.size());
    const Status status = channel.read(left.first(n));
    ASSERT_TRUE(status.ok()) << status.error().message();
    left = left.subspan(n);
  }
  EXPECT_TRUE(got == wanted);
}

TEST_F(ChannelTls, CarriesSmallAndLargeSpansInOrder) {
  const Pair pair = secured();
  const Bytes sent = pattern(48_MiB);
  const std::jthread reader([&] { expect(*pair.far, sent, {16, 200_KiB, 1_MiB, 5}); });
  send(*pair.near, sent, {16, 1_MiB, 16, 50_KiB, 16_KiB, 16_KiB - 1, 2_MiB, 7});
  EXPECT_GT(pair.near->bytes_sent(), sent.size());
  EXPECT_LT(pair.near->bytes_sent(), sent.size() + sent.size() / 100) << "full records";
}

/// One writer and one reader at each end at once, with sockets that are always full: a lock held over a wait
/// would stop everything.
TEST_F(ChannelTls, BothDirectionsGoOnWhileBothSocketsAreFull) {
  const Pair pair = secured();
  const int small = 16 << 10;
  for (const Channel* channel : {pair.near.get(), pair.far.get()}) {
    ASSERT_EQ(::setsockopt(channel->fd(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    ASSERT_EQ(::setsockopt(channel->fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small), 0);
  }
  const Bytes there = pattern(8_MiB), back = pattern(8_MiB, 3);
  std::atomic<bool> sent{false};
  const std::jthread far_writer([&] { send(*pair.far, back, {60_KiB, 16, 300_KiB}); });
  const std::jthread near_writer([&] {
    send(*pair.near, there, {1_MiB, 16, 60_KiB});
    sent = true;
    sent.notify_all();
  });
  const std::jthread near_reader([&] { expect(*pair.near, back, {9000}); });
  expect(*pair.far, there, {100_KiB, 3});
  sent.wait(false);
}

TEST_F(ChannelTls, NothingReadableLeavesThisHost) {
  const Pair pair = secured();
  const std::string secret = "what nobody else may read, said often enough to be found: ";
  std::string text;
  while (text.size() < 4000) text += secret;
  ASSERT_TRUE(pair.near->write(std::as_bytes(std::span(text))).ok());
  ASSERT_TRUE(pair.near->flush().ok());
  std::string seen(8000, '\0');
  const ssize_t got = ::recv(pair.far->fd(), seen.data(), seen.size(), MSG_PEEK);
  ASSERT_GT(got, 4000);
  EXPECT_EQ(seen.find("nobody else"), std::string::npos);
}

TEST_F(ChannelTls, ASilentPeerRunsIntoTheReadTimeout) {
  const Pair pair = secured();
  ASSERT_TRUE(pair.near->set_read_timeout(50ms).ok());
  std::byte byte;
  EXPECT_EQ(pair.near->read({&byte, 1}).error().kind, ErrorKind::kTimeout);
}

TEST_F(ChannelTls, CancelWakesReaderAndWriter) {
  const Pair pair = secured();
  Status read, written;
  {
    const std::jthread reader([&] {
      std::byte byte;
      read = pair.near->read({&byte, 1});
    });
    const std::jthread writer([&] {
      const Bytes much = pattern(1_MiB);
      while (written.ok()) written = pair.near->write(much);
    });
    while (pair.near->bytes_sent() < 64_KiB) std::this_thread::yield();
    pair.near->cancel();
  }
  EXPECT_EQ(read.error().kind, ErrorKind::kCancelled);
  EXPECT_EQ(written.error().kind, ErrorKind::kCancelled);
}

TEST_F(ChannelTls, TheEndAndACutAreToldApart) {
  std::byte byte;
  Pair ended = secured();
  ASSERT_TRUE(ended.near->shutdown_write().ok());
  EXPECT_THAT(ended.far->read({&byte, 1}).error().message(), HasSubstr("the other engine closed"));
  Pair left = secured();
  left.near.reset();
  EXPECT_THAT(left.far->read({&byte, 1}).error().message(), HasSubstr("the other engine closed"));
  Pair cut = secured();
  ASSERT_EQ(::shutdown(cut.near->fd(), SHUT_WR), 0);
  const Error error = cut.far->read({&byte, 1}).take_error();
  EXPECT_EQ(error.kind, ErrorKind::kPeerGone);
  EXPECT_THAT(error.message(), HasSubstr("was cut"));
}

TEST_F(ChannelTls, TheBandwidthLimitHolds) {
  Pair pair = secured();
  Channel& far = *pair.far;
  std::vector<std::unique_ptr<Channel>> channels;
  channels.push_back(std::move(pair.near));
  ChannelSet set(std::move(channels));
  set.set_bandwidth(1'000'000);
  const Bytes sent = pattern(400'000);
  const std::jthread reader([&] { expect(far, sent, {1000}); });
  const Nanos begin = monotonic_now();
  send(set.control(), sent, {50'000});
  EXPECT_GT(monotonic_now() - begin, 100ms);
}

TEST_F(ChannelTls, AHandshakeThatNeverEndsIsGivenUp) {
  const Pair pair = connected();
  const Status given_up = pair.far->start_tls(credentials_, TlsRole::kServer, 50ms);
  EXPECT_EQ(given_up.error().kind, ErrorKind::kTimeout);
}

/// A byte now and then keeps nobody waiting for longer.
TEST_F(ChannelTls, AHandshakeInDripsIsGivenUpToo) {
  const Pair pair = connected();
  const std::jthread dripping([&](const std::stop_token& stop) {
    const unsigned char record[] = {22, 3, 1, 0x40, 0, 1};
    for (size_t i = 0; !stop.stop_requested(); ++i) {
      if (::send(pair.near->fd(), record + std::min(i, sizeof record - 1), 1, MSG_NOSIGNAL) < 0) return;
      std::this_thread::sleep_for(5ms);
    }
  });
  EXPECT_EQ(pair.far->start_tls(credentials_, TlsRole::kServer, 200ms).error().kind, ErrorKind::kTimeout);
}

TEST_F(ChannelTls, TheFirstByteTellsWhoSpeaks) {
  for (const bool tls : {false, true}) {
    const Pair pair = connected();
    const unsigned char first = tls ? 22 : 'G';
    ASSERT_EQ(::send(pair.near->fd(), &first, 1, 0), 1);
    EXPECT_EQ(pair.far->begins_with_tls().value(), tls);
    std::byte byte;
    ASSERT_TRUE(pair.far->read({&byte, 1}).ok()) << "it is still there";
  }
}

}  // namespace
}  // namespace godwit::transport
