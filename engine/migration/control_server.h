// The control socket of a job: /run/godwit/job.PID.sock, for root and the engine's own user. Thread: one of
// its own, which only answers; what is asked for is noted in Control, and done by the migrating thread.
// A socket that a killed engine left behind is replaced.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/fd.h"
#include "engine/migration/control.h"

namespace godwit::migration {

std::string job_path(pid_t pid);

class ControlServer {
 public:
  /// Listens at `path` until destroyed. `control` must outlive it. Errors: Refused (another engine listens
  /// there: it migrates this process now), System.
  static Result<std::unique_ptr<ControlServer>> start(Control& control, const std::string& path);
  /// Wakes and ends the thread; the socket is gone.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

 private:
  struct Client {
    Fd fd;
    std::string text;  ///< of a line that has not come to its end
  };
  ControlServer(Control& control, std::string path) : control_(control), path_(std::move(path)) {}
  void run();
  void welcome();
  /// False when it is to be let go.
  bool listen_to(Client& client);

  Control& control_;
  std::string path_;
  Fd listener_, stop_;
  std::vector<Client> clients_;
  std::thread thread_;
};

/// Takes away what an engine that was killed left at `path`; nothing if somebody listens there.
void remove_dead_socket(const std::string& path);

/// One request, one answer; both lines, without their ends. Errors: Refused when there is no such job,
/// Denied, Timeout.
Result<std::string> ask_job(const std::string& path, const std::string& request);

}  // namespace godwit::migration
