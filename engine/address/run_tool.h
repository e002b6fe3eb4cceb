// Runs one of the host's network tools (iptables and its kin) and waits for it: never inside the freeze.
// Thread: any. The tool inherits the calling thread's network namespace.
#pragma once

#include <string>
#include <vector>

#include "engine/base/result.h"

namespace godwit::address {

struct ToolRun {
  int exit_code = 0;   ///< 128 + n after signal n
  std::string output;  ///< stdout and stderr, as they came
};

enum class Network : uint8_t {
  kOwn,    ///< the tool acts on this host
  kEmpty,  ///< the tool acts on a fresh network namespace that vanishes with it: a try without a trace
};

/// The first of the system's directories that holds `name`, or nothing; PATH is not asked.
std::string find_tool(const std::string& name);
/// Errors: Unsupported when the tool is missing, System. A failing tool is no error here: see exit_code.
Result<ToolRun> run_tool(const std::string& name, const std::vector<std::string>& arguments,
                         Network network = Network::kOwn);

}  // namespace godwit::address
