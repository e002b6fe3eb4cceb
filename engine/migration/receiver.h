// `godwit receive`: listens, and rebuilds what comes. A session is N connections of one source; each session
// has a thread for its control channel and one for every further channel.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/migration/rebuild.h"
#include "engine/transport/listener.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

struct ReceiveOptions {
  std::string listen = "127.0.0.1:4639";
  bool once = false;  ///< end after the first session that ran or failed after its inventory
  bool insecure = false;
  PidNamespace pid_namespace = PidNamespace::kAuto;
  std::string hooks;
  Nanos dead_after{std::chrono::seconds(10)};  ///< a source that acknowledges nothing for so long is gone
  /// A prepared process without COMMIT is given up after this.
  [[nodiscard]] Nanos commit_patience() const { return 2 * dead_after; }
  std::function<void(const std::string& address, uint16_t port)> on_listening;
  std::function<void(pid_t pid, pid_t inner_pid)> on_running;
  std::function<void(const Error&)> on_failed;
  const std::atomic<bool>* cancelled = nullptr;
};

class ReceiveSession;

class Receiver {
 public:
  static Result<std::unique_ptr<Receiver>> create(ReceiveOptions options);
  ~Receiver();
  /// Serves until cancelled (or once). With --once its error is the session's. Children that end are reaped.
  Status serve();

 private:
  struct Guest {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> finished;
  };
  Receiver(ReceiveOptions options, transport::Listener listener)
      : options_(std::move(options)), listener_(std::move(listener)) {}
  void welcome(std::unique_ptr<transport::Channel> channel);
  Status handle(std::unique_ptr<transport::Channel> channel);
  Status run_session(std::unique_ptr<transport::Channel> channel, std::unique_ptr<wire::RecordReader> reader);
  Status answer_query(transport::Channel& channel, wire::RecordReader& reader);
  std::shared_ptr<ReceiveSession> find(const wire::SessionId& id);
  void reap_guests(bool all);
  void reap_children();

  ReceiveOptions options_;
  transport::Listener listener_;
  std::mutex mutex_;
  std::map<wire::SessionId, std::shared_ptr<ReceiveSession>> sessions_;
  std::vector<Guest> guests_;
  std::vector<pid_t> children_;     ///< processes that were rebuilt here and run
  std::atomic<bool> done_ = false;  ///< --once: the session has ended
  Status outcome_;
};

}  // namespace godwit::migration
