// Waits for the other engine to connect. One thread accepts; cancel() is for any thread.
#pragma once

#include <memory>

#include "engine/transport/channel.h"

namespace godwit::transport {

class Listener {
 public:
  /// "ADDR:PORT", port 0 for any free one. Errors: Usage, Denied (port below 1024), System (port in use).
  static Result<Listener> create(std::string_view address);

  /// The next connection. A negative `timeout` waits for ever. Errors: Timeout, Cancelled, System.
  Result<std::unique_ptr<Channel>> accept(Nanos timeout);
  /// A waiting and every later accept() returns Cancelled.
  void cancel();

  [[nodiscard]] const Endpoint& local() const { return local_; }  ///< with the port that was really taken
  [[nodiscard]] uint16_t port() const { return local_.port(); }

 private:
  Fd socket_;
  Fd cancelled_;  ///< an eventfd, readable once cancelled
  Endpoint local_;
};

}  // namespace godwit::transport
