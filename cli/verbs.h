// One function a verb: carries it out and returns the exit code. Everything they do goes through
// engine/migration.
#pragma once

#include <string>
#include <vector>

namespace godwit::cli {

struct Arguments {
  bool json = false;
  int pid = 0;
  std::string host;  ///< "HOST" or "HOST:PORT"
  std::string listen = "127.0.0.1:4639";
  std::string file;
  bool once = false;
  bool insecure = false;
  bool leave_running = false;
  bool resume = false;
  bool discard = false;
  std::string pid_namespace = "auto";
  std::string hooks;
  std::vector<std::string> move_addresses;
  double downtime_limit_ms = 300;
  std::string bandwidth;  ///< bytes a second, with k, M or G; empty: no limit
  double timeout_s = 0;   ///< 0: none
  double link_timeout_s = 10;
  unsigned max_rounds = 30;
  unsigned channels = 1;
  std::string cache = "64M";
};

int receive(const Arguments& arguments);
int migrate(const Arguments& arguments);
int check(const Arguments& arguments);
int resolve(const Arguments& arguments);
int checkpoint(const Arguments& arguments);
int restore(const Arguments& arguments);
int inspect(const Arguments& arguments);
int probe(const Arguments& arguments);

}  // namespace godwit::cli
