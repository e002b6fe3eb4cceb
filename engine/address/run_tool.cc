#include "engine/address/run_tool.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/fd.h"

namespace godwit::address {
namespace {

constexpr int kNoNamespace = 125;  // exit codes of our own child before the tool takes over
constexpr int kNoExec = 126;

// SAFETY: between fork and exec only async-signal-safe calls; other threads of the engine may hold any lock.
[[noreturn]] void become_tool(const char* path, char* const* argv, int output, Network network) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (network == Network::kEmpty && ::unshare(CLONE_NEWNET) != 0) ::_exit(kNoNamespace);
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  char* const environment[] = {nullptr};
  ::execve(path, argv, environment);
  ::_exit(kNoExec);
}

std::string read_to_end(int fd) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace

std::string find_tool(const std::string& name) {
  for (const char* directory : {"/usr/sbin/", "/sbin/", "/usr/local/sbin/", "/usr/bin/", "/bin/"}) {
    std::string path = directory + name;
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return {};
}

Result<ToolRun> run_tool(const std::string& name, const std::vector<std::string>& arguments,
                         Network network) {
  const std::string path = find_tool(name);
  if (path.empty()) return fail(ErrorKind::kUnsupported, "run tool", name, "install it (package iptables)");
  std::vector<char*> argv{const_cast<char*>(name.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe", name);
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork", name);
  if (pid == 0) become_tool(path.c_str(), argv.data(), writer.get(), network);
  writer.reset();
  ToolRun run;
  run.output = read_to_end(reader.get());
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return fail_errno("waitpid", name);
  }
  run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return run;
}

}  // namespace godwit::address
