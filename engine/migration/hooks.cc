#include "engine/migration/hooks.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

namespace godwit::migration {

Status Hooks::run(const char* name, pid_t pid, const std::string& peer) const {
  if (folder_.empty()) return {};
  const std::string program = folder_ + "/" + name;
  if (::access(program.c_str(), X_OK) != 0) return {};
  std::vector<std::string> extra{fmt::format("GODWIT_HOOK={}", name), fmt::format("GODWIT_PID={}", pid),
                                 fmt::format("GODWIT_PEER={}", peer)};
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  for (std::string& entry : extra) environment.push_back(entry.data());
  environment.push_back(nullptr);
  std::string argument = program;
  char* arguments[] = {argument.data(), nullptr};
  pid_t child = 0;
  const int err = ::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environment.data());
  if (err != 0) return fail_errno("run a hook", program, err);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno("wait for a hook", program);
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return fail(ErrorKind::kSystem, "run a hook", program,
              WIFEXITED(status) ? fmt::format("it exited with {}", WEXITSTATUS(status))
                                : fmt::format("it was killed by signal {}", WTERMSIG(status)));
}

}  // namespace godwit::migration
