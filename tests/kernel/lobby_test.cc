// What strangers may take of a receiver, over real connections.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "engine/migration/lobby.h"
#include "engine/transport/listener.h"

namespace godwit::migration {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class LobbyTest : public testing::Test {
 protected:
  /// A guest says 'k' to become known, and then stays until it leaves.
  Status serve(transport::Channel& channel, Lobby::Visit& visit) {
    const int now = ++inside_;
    for (int most = most_; now > most && !most_.compare_exchange_weak(most, now);) {
    }
    Status served = [&]() -> Status {
      std::byte byte;
      TRY(channel.read({&byte, 1}));
      TRY(visit.become_known());
      TRY(channel.write({&byte, 1}));
      TRY(channel.flush());
      return channel.read({&byte, 1});
    }();
    --inside_;
    return served;
  }
  void start(LobbyLimits limits) {
    lobby_ = std::make_unique<Lobby>([this](transport::Channel& c, Lobby::Visit& v) { return serve(c, v); },
                                     [this](const Error& error) {
                                       const std::lock_guard lock(mutex_);
                                       said_ += error.message() + "\n";
                                       ++reports_;
                                     },
                                     limits);
  }
  std::unique_ptr<transport::Channel> come() {
    auto guest = transport::connect({"127.0.0.1", listener_.port()}, 10s).take();
    lobby_->admit(listener_.accept(10s).take());
    return guest;
  }
  static bool becomes_known(transport::Channel& guest) {
    std::byte byte{'k'};
    return guest.write({&byte, 1}).ok() && guest.flush().ok() && guest.read({&byte, 1}).ok();
  }
  std::string said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }

  transport::Listener listener_ = transport::Listener::create("127.0.0.1:0").take();
  std::atomic<int> inside_ = 0, most_ = 0, reports_ = 0;
  std::mutex mutex_;
  std::string said_;
  std::unique_ptr<Lobby> lobby_;
};

TEST_F(LobbyTest, StrangersNeverTakeMoreThanTheirRoom) {
  start({.strangers = 4, .guests = 8, .patience = 1h});
  std::vector<std::unique_ptr<transport::Channel>> silent;
  for (int i = 0; i < 200; ++i) {
    silent.push_back(come());
    if (i % 50 == 0) {
      const auto honest = come();
      EXPECT_TRUE(becomes_known(*honest)) << "one that hurries gets through";
    }
  }
  EXPECT_LE(most_, 4 + 5);
  EXPECT_THAT(said(), HasSubstr("many others connected"));
  EXPECT_LT(reports_, 100) << "not each is told";
  silent.clear();
  lobby_->finish();
}

TEST_F(LobbyTest, WhoeverIsKnownStays) {
  start({.strangers = 2, .guests = 8, .patience = 1ms});
  const auto honest = come();
  ASSERT_TRUE(becomes_known(*honest));
  std::vector<std::unique_ptr<transport::Channel>> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(come());
  for (int i = 0; i < 5; ++i) lobby_->sweep();
  EXPECT_GE(inside_, 1);
  std::byte byte{'x'};
  EXPECT_TRUE(honest->write({&byte, 1}).ok() && honest->flush().ok());
  silent.clear();
  lobby_->finish();
}

TEST_F(LobbyTest, AStrangerIsSentAwayWhenItsTimeIsOver) {
  start({.strangers = 4, .guests = 8, .patience = 20ms});
  const auto silent = come();
  const std::jthread sweeper([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) lobby_->sweep();
  });
  std::byte byte;
  EXPECT_FALSE(silent->read({&byte, 1}).ok());
  while (said().empty()) std::this_thread::yield();
  EXPECT_THAT(said(), HasSubstr("did not authenticate in time"));
}

TEST_F(LobbyTest, AtItsEndItWaitsForNoStranger) {
  start({.strangers = 4, .guests = 8, .patience = 1h});
  const auto silent = come();
  lobby_->finish();
  std::byte byte;
  EXPECT_FALSE(silent->read({&byte, 1}).ok());
}

TEST_F(LobbyTest, TooManyGuestsAreRefused) {
  start({.strangers = 4, .guests = 2, .patience = 1h});
  const auto first = come(), second = come();
  ASSERT_TRUE(becomes_known(*first) && becomes_known(*second));
  auto third = come();
  EXPECT_FALSE(becomes_known(*third));
  EXPECT_THAT(said(), HasSubstr("open already"));
}

}  // namespace
}  // namespace godwit::migration
