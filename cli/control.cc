// The verbs that speak to a migration under way, over its control socket: status, set, cancel, pause, resume,
// freeze-now, postcopy.
#include <fmt/format.h>

#include <godwit/godwit.h>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/events.h"
#include "cli/exit_code.h"
#include "cli/limit_options.h"
#include "cli/verbs.h"

namespace godwit::cli {
namespace {

using nlohmann::ordered_json;

void print_for_people(const ordered_json& s) {
  const ordered_json& ram = s.at("ram");
  const std::string state = s.value("paused", false) ? "paused" : s.value("status", "");
  fmt::print(
      "{} to {}: {}, round {}, {:.1f} of {:.1f} MB left, {:.0f} Mbit/s, {} pages/s written, expected "
      "downtime {:.1f} ms",
      s.value("job", 0), s.value("destination", ""), state, s.value("round", 0),
      ram.value("remaining", 0.0) / 1e6, ram.value("total", 0.0) / 1e6, ram.value("mbps", 0.0),
      ram.value("dirty-pages-rate", 0L), s.value("expected-downtime", 0.0));
  if (const int percent = s.value("cpu-throttle-percentage", 0)) fmt::print(", throttled by {} %", percent);
  if (s.value("dirty-limit-in-force", false)) fmt::print(", writers limited");
  fmt::print("\n");
}

/// An answer of an engine is not trusted to have all of its fields.
void print_status(const std::string& text, bool json) {
  auto status = ordered_json::parse(text, nullptr, false);
  if (!status.is_object()) return;
  if (json || !status.contains("ram") || !status["ram"].is_object()) {
    ordered_json line = {{"event", "status"}};
    line.update(status);
    fmt::print("{}\n", line.dump());
  } else {
    print_for_people(status);
  }
}

Status try_status(const Arguments& arguments) {
  const bool all = arguments.pid == 0;
  const std::vector<pid_t> jobs = all ? TRY(migration::list_jobs()) : std::vector<pid_t>{arguments.pid};
  if (jobs.empty() && !arguments.json) fmt::print("nothing is under way\n");
  for (const pid_t job : jobs) {
    auto status = migration::job_status(job);
    // Of all jobs, one may have ended since they were listed.
    if (!status.ok() && all && status.error().kind == ErrorKind::kRefused) continue;
    print_status(TRY(std::move(status)), arguments.json);
  }
  return {};
}

int simple(const Arguments& arguments, Status (*wish)(pid_t)) {
  return Events(arguments.json).finish(wish(arguments.pid), "");
}

Status try_set(const Arguments& arguments) {
  return migration::change_job(arguments.pid, TRY(changes_of(arguments.limits)));
}

}  // namespace

int status(const Arguments& arguments) {
  return Events(arguments.json).finish(try_status(arguments), "");
}

int set(const Arguments& arguments) {
  return Events(arguments.json).finish(try_set(arguments), "");
}

int cancel(const Arguments& arguments) {
  return simple(arguments, migration::cancel_job);
}
int pause(const Arguments& arguments) {
  return simple(arguments, migration::pause_job);
}
int resume(const Arguments& arguments) {
  return simple(arguments, migration::resume_job);
}
int freeze_now(const Arguments& arguments) {
  return simple(arguments, migration::freeze_job_now);
}
int postcopy(const Arguments& arguments) {
  return simple(arguments, migration::postcopy_job_now);
}

}  // namespace godwit::cli
