// What the command line prints: one line for people, or one JSON object a line (--json) for programs.
#pragma once

#include <godwit/godwit.h>
#include <string>

namespace godwit::cli {

class Events {
 public:
  explicit Events(bool json) : json_(json) {}

  void listening(const std::string& address, uint16_t port) const;
  void running(pid_t pid, pid_t inner_pid) const;
  void findings(const state::Findings& findings) const;
  void progress(const migration::Progress& progress) const;
  void dirty_rate(const migration::DirtyRate& rate) const;
  void completed(const migration::Report& report) const;
  /// The last word of a verb that failed. `original`: "running" or "stopped", empty where there is none.
  void failed(const Error& error, const std::string& original) const;
  /// The exit code of a verb, and its last word if it failed.
  [[nodiscard]] int finish(const Status& status, const std::string& original) const;

 private:
  bool json_;
};

}  // namespace godwit::cli
