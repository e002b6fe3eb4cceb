// A conversation that notices everything: a client that streams a known pattern and a server that checks it
// and sends it back changed, each in a thread of its own. The server can be stopped between two system calls,
// as a frozen process is, and go on with another socket.
#pragma once

#include <linux/tcp.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/fd.h"

namespace godwit::test {

class EchoServer {
 public:
  explicit EchoServer(Fd connection);
  ~EchoServer();
  [[nodiscard]] int socket() const { return connection_.get(); }
  void pause();         ///< returns when the thread stands still outside of any system call on the socket
  void go_on();         ///< with the same socket
  void go_on(Fd with);  ///< with another one; returns after closing the former
  [[nodiscard]] std::string complaint();  ///< empty while all is well

 private:
  void serve();
  bool step();
  void complain(std::string text);

  Fd connection_;
  Fd wake_;
  std::vector<uint8_t> pending_;
  uint64_t received_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool pause_ = false, paused_ = false, stop_ = false;
  std::string complaint_;
  std::thread thread_;
};

struct StreamResult {
  uint64_t bytes = 0;
  Nanos longest_silence{};  ///< between two arrivals
  tcp_info info{};
  std::string complaint;
};

class StreamClient {
 public:
  explicit StreamClient(Fd connection);
  ~StreamClient();
  /// Returns when so many bytes more have come back, or something is wrong: then false.
  bool wait_for(uint64_t more);
  /// Sends no more, waits for all that is out, and closes.
  StreamResult finish();

 private:
  void stream();
  bool send_some();
  bool receive_some();

  Fd connection_;
  uint64_t sent_ = 0;
  Nanos last_arrival_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t received_ = 0;
  bool last_ = false, over_ = false;
  StreamResult result_;
  std::thread thread_;
};

}  // namespace godwit::test
