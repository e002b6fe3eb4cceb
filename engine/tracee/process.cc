#include "engine/tracee/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "engine/base/files.h"

namespace godwit::tracee {
namespace {

constexpr uint64_t kPfKthread = 0x00200000;  // include/linux/sched.h

/// Seeing a process's areas takes the same privilege as everything that follows; better refused here.
Status check_access(pid_t pid) {
  const Fd maps(::open(fmt::format("/proc/{}/maps", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (maps.valid() || (errno != EACCES && errno != EPERM)) return {};
  Error error = fail_errno("open", fmt::format("/proc/{}/maps", pid));
  error.remedy = "run godwit as root, or as the owner with CAP_SYS_PTRACE";
  return error;
}

/// KERNEL: the map of a running process is read a page of text at a time; an area that grows or moves in
/// between can appear twice.
Result<Layout> read_layout(const std::string& path) {
  constexpr int kAttempts = 100;
  for (int attempt = 1;; ++attempt) {
    const std::string text = TRY(read_file(path));
    if (text.empty()) return fail_errno("read the memory map", path, ESRCH);  // a zombie has none
    auto layout = parse_layout(text);
    if (layout.ok() || layout.error().kind != ErrorKind::kCorrupt || attempt == kAttempts) return layout;
  }
}

/// A number of /proc/PID/stat, whose fields may be negative.
bool take_number(std::string_view piece, uint64_t& value) {
  const bool negative = piece.starts_with('-');
  const auto magnitude = parse_number(negative ? piece.substr(1) : piece);
  if (!magnitude) return false;
  value = negative ? 0 - *magnitude : *magnitude;
  return true;
}

}  // namespace

Result<Process> Process::open(pid_t pid) {
  const std::string who = fmt::format("pid {}", pid);
  const std::string status = TRY(read_file(fmt::format("/proc/{}/status", pid)));
  const auto leader = field(status, "Tgid:");
  if (!leader || parse_number(*leader) != static_cast<uint64_t>(pid))
    return fail(ErrorKind::kRefused, "open process", who,
                fmt::format("this is a thread; name its process {}", leader.value_or("?")));
  if (pid == ::getpid()) return fail(ErrorKind::kRefused, "open process", who, "this is godwit itself");
  Process process;
  process.pidfd_ = TRY(PidFd::open(pid));
  const Stat stat = TRY(process.stat());
  if ((stat.flags & kPfKthread) != 0)
    return fail(ErrorKind::kRefused, "open process", who, "a kernel thread has no memory to move");
  TRY(check_access(pid));
  return process;
}

std::string Process::path(std::string_view rest) const {
  return fmt::format("/proc/{}/{}", pid(), rest);
}

Result<std::vector<pid_t>> Process::threads() const {
  std::vector<pid_t> tids = TRY(list_numbers(path("task")));
  if (tids.empty()) return fail_errno("list threads", fmt::format("pid {}", pid()), ESRCH);
  return tids;
}

/// A field of the status that is an amount of memory; 0 of a process that has ended.
Result<uint64_t> Process::memory_in_status(std::string_view name) const {
  const std::string text = TRY(status(pid()));
  const std::string_view amount = field(text, name).value_or("0 kB");
  return parse_number(amount.substr(0, amount.find(' '))).value_or(0) << 10;
}

Result<uint64_t> Process::pinned_memory() const {
  return memory_in_status("VmPin:");
}

Result<uint64_t> Process::locked_memory() const {
  return memory_in_status("VmLck:");
}

Result<std::vector<pid_t>> Process::children() const {
  std::vector<pid_t> all;
  for (const pid_t tid : TRY(threads())) {
    const auto text = read_file(path(fmt::format("task/{}/children", tid)));
    if (!text.ok()) {
      if (text.error().kind == ErrorKind::kTargetGone && tid != pid()) continue;  // that thread has ended
      Error error = text.error();
      if (error.err == ENOENT && !pidfd_.exited())
        error.kind = ErrorKind::kUnsupported;  // no CONFIG_PROC_CHILDREN
      return error;
    }
    for (const std::string_view piece : split(text.value(), ' ')) {
      if (const auto child = parse_number(trim(piece))) all.push_back(static_cast<pid_t>(*child));
    }
  }
  std::sort(all.begin(), all.end());
  return all;
}

Result<Stat> Process::stat() const {
  return parse_stat(TRY(read_file(path("stat"))));
}

Result<Stat> Process::stat(pid_t tid) const {
  return parse_stat(TRY(read_file(path(fmt::format("task/{}/stat", tid)))));
}

Result<std::string> Process::status(pid_t tid) const {
  return read_file(path(fmt::format("task/{}/status", tid)));
}

Result<std::vector<int>> Process::fds() const {
  return list_numbers(path("fd"));
}

Result<std::optional<long>> Process::sleeping_call(pid_t tid) const {
  const std::string text = TRY(read_file(path(fmt::format("task/{}/syscall", tid))));
  const std::string_view first = split(trim(text), ' ').front();
  if (first == "running") return std::optional<long>();
  if (first == "-1") return std::optional<long>(-1);
  const auto number = parse_number(first);
  if (!number)
    return fail(ErrorKind::kCorrupt, "find the call of a thread", fmt::format("thread {}", tid), text);
  return std::optional<long>(static_cast<long>(*number));
}

Result<Layout> Process::layout() const {
  return read_layout(path("maps"));
}

Result<Layout> Process::detailed_layout() const {
  return read_layout(path("smaps"));
}

Result<Stat> parse_stat(std::string_view text) {
  // The name may hold blanks and parentheses: it ends at the *last* ')'.
  const size_t open = text.find('('), close = text.rfind(')');
  const auto corrupt = [&](const char* why) {
    return fail(ErrorKind::kCorrupt, "parse stat", fmt::format("\"{}\"", text.substr(0, 200)), why);
  };
  if (open == std::string_view::npos || close == std::string_view::npos || close < open)
    return corrupt("no name in parentheses");
  constexpr size_t kFirst = 3, kLast = 51;  // fields as proc(5) counts them
  const auto pieces = split(trim(text.substr(close + 1)), ' ');
  if (pieces.size() < kLast - kFirst + 1) return corrupt("too few fields");
  if (pieces[0].size() != 1) return corrupt("the state is not one letter");
  std::array<uint64_t, kLast + 1> field_at{};
  for (size_t i = kFirst + 1; i <= kLast; ++i) {
    if (!take_number(pieces[i - kFirst], field_at[i])) return corrupt("a field is not a number");
  }
  Stat stat{.comm = std::string(text.substr(open + 1, close - open - 1)), .state = pieces[0][0]};
  stat.ppid = static_cast<pid_t>(field_at[4]);
  stat.pgrp = static_cast<pid_t>(field_at[5]);
  stat.session = static_cast<pid_t>(field_at[6]);
  stat.tty = static_cast<int>(field_at[7]);
  stat.flags = field_at[9];
  stat.faults = field_at[10] + field_at[12];
  stat.start_time = field_at[22];
  stat.start_code = field_at[26];
  stat.end_code = field_at[27];
  stat.start_stack = field_at[28];
  stat.start_data = field_at[45];
  stat.end_data = field_at[46];
  stat.start_brk = field_at[47];
  stat.arg_start = field_at[48];
  stat.arg_end = field_at[49];
  stat.env_start = field_at[50];
  stat.env_end = field_at[51];
  return stat;
}

}  // namespace godwit::tracee
