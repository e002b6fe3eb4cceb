// The connections of a receiver, a thread each, and the limits on those whose peer is not known yet: so many
// at once, so long each. When there are too many, the oldest goes of the address that has most, so that one
// that hurries, or comes from elsewhere, gets through while others dawdle. Place: between listener and
// receiver. One thread admits; the rest is for the connections' own threads.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "engine/transport/channel.h"

namespace godwit::migration {

struct LobbyLimits {
  size_t strangers = 32;                    ///< connections whose peer is not known yet
  size_t guests = 128;                      ///< the others
  Nanos patience{std::chrono::seconds(5)};  ///< until a stranger must have become known
};

class Lobby {
 public:
  /// One connection, as its own thread sees it.
  class Visit {
   public:
    explicit Visit(Lobby& lobby) : lobby_(lobby) {}
    /// The peer is who it must be: the limits on strangers end. Errors: Refused (too many guests), Timeout.
    Status become_known();

   private:
    friend class Lobby;
    Lobby& lobby_;
    Nanos arrived_ = monotonic_now();
    std::string address_;                    ///< of the peer, without its port
    transport::Channel* channel_ = nullptr;  ///< with lobby_.mutex_; null once it is over
    bool known_ = false;                     ///< with lobby_.mutex_
    const char* sent_away_ = nullptr;        ///< why; with lobby_.mutex_
    std::atomic<bool> finished_ = false;
    std::thread thread_;
  };
  using Host = std::function<Status(transport::Channel&, Visit&)>;

  /// `report` is told of connections that came to nothing, a few a second at most.
  Lobby(Host host, std::function<void(const Error&)> report, LobbyLimits limits = {})
      : host_(std::move(host)), report_(std::move(report)), limits_(limits) {}
  ~Lobby() { finish(); }
  Lobby(const Lobby&) = delete;
  Lobby& operator=(const Lobby&) = delete;

  /// Starts its thread. Waits for the end of another one that it takes the place of.
  void admit(std::unique_ptr<transport::Channel> channel);
  /// Sends away whose time is over, and forgets who has left. Now and then.
  void sweep();
  /// Sends the strangers away and waits for the others.
  void finish();

 private:
  void live(Visit& visit, transport::Channel& channel);
  void send_away(Visit& visit, const char* why);  ///< with the lock
  void make_room();
  Visit* find_one_to_send_away();  ///< with the lock; null: there is room
  void tell(Error error);

  const Host host_;
  const std::function<void(const Error&)> report_;
  const LobbyLimits limits_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Visit>> visits_;  ///< oldest first; the list itself: the admitting thread only
  Nanos window_{0};                             ///< begin of the second in which `told_` were reported
  size_t told_ = 0;
  size_t untold_ = 0;
};

}  // namespace godwit::migration
