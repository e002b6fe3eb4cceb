// `godwit probe`: what this kernel offers, what follows from it.
#include <fmt/format.h>

#include <godwit/godwit.h>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/exit_code.h"
#include "cli/verbs.h"

namespace godwit::cli {
namespace {

/// What `--tracker auto` takes here.
void tell_tracker(bool json) {
  const auto tracker = migration::probe_tracker();
  const std::string name(tracker.ok() ? to_string(tracker.value()) : "none");
  if (json)
    fmt::print("{}\n", nlohmann::ordered_json{{"event", "tracker"}, {"name", name}}.dump());
  else
    fmt::print("tracker: {}\n", name);
}

}  // namespace

int probe(const Arguments& arguments) {
  bool complete = true;
  for (const KernelFeature& feature : kernel_features().list()) {
    complete = complete && (feature.available || !feature.required);
    if (arguments.json) {
      const nlohmann::ordered_json line = {
          {"event", "feature"},           {"name", feature.name},         {"available", feature.available},
          {"required", feature.required}, {"needed_for", feature.needed}, {"without", feature.without}};
      fmt::print("{}\n", line.dump());
      continue;
    }
    fmt::print("{:<20} {:<8} {}{}\n", feature.name, feature.available ? "yes" : "no", feature.needed,
               feature.available ? "" : "; without: " + feature.without);
  }
  tell_tracker(arguments.json);
  if (!complete && !arguments.json) fmt::print("this host cannot migrate processes\n");
  return complete ? kDone : kRefused;
}

}  // namespace godwit::cli
