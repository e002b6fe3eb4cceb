// `godwit receive`: the destination's side. Waits for processes and lets them run here.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/migration/pid_namespace.h"
#include "engine/transport/credentials.h"

namespace godwit::migration {

struct ReceiveOptions {
  std::string listen = "127.0.0.1:4639";
  bool once = false;  ///< end after the first session that ran or failed after its inventory
  /// Who may send processes here: only holders of the same. Null: plain TCP, which needs `insecure` on an
  /// address that is not loopback.
  std::shared_ptr<const transport::Credentials> credentials;
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

/// Blocks until cancelled (or once). With `once` its error is the session's. What runs here is a child of
/// this process; children that end are reaped. Errors: Usage, Denied, System, and with `once` those of a
/// session.
Status receive(ReceiveOptions options);

}  // namespace godwit::migration
