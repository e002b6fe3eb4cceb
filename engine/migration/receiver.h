// `godwit receive`: listens, and rebuilds what comes. A session is N connections of one source; each session
// has a thread for its control channel and one for every further channel.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/migration/receive.h"
#include "engine/transport/listener.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/stream_header.h"

namespace godwit::migration {

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
