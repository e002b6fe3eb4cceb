// One function a verb: carries it out and returns the exit code. Everything they do goes through
// engine/migration.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace godwit::cli {

/// What `migrate` begins with and `set` changes; what is not given keeps its default, or stays as it is.
struct LimitArguments {
  std::optional<double> downtime_limit_ms, timeout_s;
  std::optional<std::string> bandwidth, dirty_limit;  ///< bytes a second, with k, M or G; 0: no limit
  std::optional<unsigned> max_rounds, throttle_initial, throttle_increment, throttle_max;
  std::optional<std::string> on_timeout, throttle;
};

/// Only `migrate` can be given these.
struct PostcopyArguments {
  bool postcopy = false;
  std::optional<std::string> after;  ///< rounds, or a time: "500ms", "2s"
  double reconnect_s = 60;
};

struct Arguments {
  bool json = false;
  int pid = 0;
  std::string host;  ///< "HOST" or "HOST:PORT"
  std::string listen = "127.0.0.1:4639";
  std::string file;
  bool once = false;
  bool insecure = false;
  std::string tls_ca, tls_certificate, tls_key, psk_file;  ///< paths
  std::string ca_folder, host_name;                        ///< of keygen
  unsigned days = 365;
  bool leave_running = false;
  bool verify = false;
  bool resume = false;
  bool discard = false;
  std::string pid_namespace = "auto";
  std::string tracker = "auto";
  std::string hooks;
  std::string report;  ///< a file for html_report()
  std::vector<std::string> move_addresses;
  LimitArguments limits;
  PostcopyArguments postcopy;
  double link_timeout_s = 10;
  unsigned seconds = 1;
  std::string channels = "auto";
  std::string cache = "64M";
  std::string compress = "auto";
};

int receive(const Arguments& arguments);
int migrate(const Arguments& arguments);
int check(const Arguments& arguments);
int resolve(const Arguments& arguments);
int checkpoint(const Arguments& arguments);
int restore(const Arguments& arguments);
int inspect(const Arguments& arguments);
int probe(const Arguments& arguments);
int status(const Arguments& arguments);
int set(const Arguments& arguments);
int cancel(const Arguments& arguments);
int pause(const Arguments& arguments);
int resume(const Arguments& arguments);
int freeze_now(const Arguments& arguments);
int postcopy(const Arguments& arguments);
int dirty_rate(const Arguments& arguments);
int keygen(const Arguments& arguments);

}  // namespace godwit::cli
