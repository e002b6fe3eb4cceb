// `godwit receive`: listens, and rebuilds what comes. A session is N connections of one source; each session
// has a thread for its control channel and one for every further channel.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/migration/lobby.h"
#include "engine/migration/receive.h"
#include "engine/transport/listener.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/state.pb.h"
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
  Receiver(ReceiveOptions options, transport::Listener listener);
  /// A connection, on its own thread. Errors: why it came to nothing; those of a session are told by itself.
  Status handle(transport::Channel& channel, Lobby::Visit& visit);
  Status greet(transport::Channel& channel, wire::RecordReader& reader, Lobby::Visit& visit);
  void run_session(transport::Channel& channel, wire::RecordReader& reader,
                   const std::shared_ptr<ReceiveSession>& session);
  Status open_session(transport::Channel& channel, wire::RecordReader& reader, const wire::Hello& hello);
  Status answer_query(transport::Channel& channel, wire::RecordReader& reader, const wire::Hello& hello);
  std::shared_ptr<ReceiveSession> find(const wire::SessionId& id);
  void reap_children();

  ReceiveOptions options_;
  transport::Listener listener_;
  std::mutex mutex_;
  std::map<wire::SessionId, std::shared_ptr<ReceiveSession>> sessions_;
  std::vector<pid_t> children_;     ///< processes that were rebuilt here and run
  std::atomic<bool> done_ = false;  ///< --once: the session has ended
  Status outcome_;
  Lobby lobby_;  ///< the last member: its threads end before all that they use goes
};

}  // namespace godwit::migration
