// What /proc tells of a process, without touching it: identity, threads, layout, status. Any thread may use
// it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/base/pidfd.h"
#include "engine/base/result.h"
#include "engine/model/vma.h"

namespace godwit::tracee {

/// Fields of /proc/PID/stat by proc(5)'s meaning; addresses of the mm are 0 without the privilege to see
/// them.
struct Stat {
  std::string comm;
  char state = '?';
  pid_t ppid = 0, pgrp = 0, session = 0;
  int tty = 0;
  uint64_t flags = 0;   ///< PF_* of the kernel
  uint64_t faults = 0;  ///< minor and major; of the thread whose file it is, or of all threads of the process
  uint64_t start_time = 0;  ///< clock ticks since boot: with the pid, the identity of a process
  uint64_t start_code = 0, end_code = 0, start_stack = 0, start_data = 0, end_data = 0, start_brk = 0;
  uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
};

class Process {
 public:
  /// Errors: TargetGone, Denied, Refused (a thread id that is not a process, a kernel thread).
  static Result<Process> open(pid_t pid);

  [[nodiscard]] pid_t pid() const { return pidfd_.pid(); }
  [[nodiscard]] const PidFd& pidfd() const { return pidfd_; }

  [[nodiscard]] Result<std::vector<pid_t>> threads() const;   ///< tids, ascending, the leader among them
  [[nodiscard]] Result<std::vector<pid_t>> children() const;  ///< of all threads
  /// Bytes that are pinned for long (registered io_uring buffers, RDMA, a device).
  [[nodiscard]] Result<uint64_t> pinned_memory() const;
  [[nodiscard]] Result<uint64_t> locked_memory() const;  ///< bytes
  [[nodiscard]] Result<Stat> stat() const;
  [[nodiscard]] Result<Stat> stat(pid_t tid) const;
  [[nodiscard]] Result<std::string> status(pid_t tid) const;  ///< the text of /proc/PID/task/TID/status
  [[nodiscard]] Result<std::vector<int>> fds() const;
  /// The system call that a thread sleeps in, -1 if it sleeps outside of one; nothing if it runs.
  [[nodiscard]] Result<std::optional<long>> sleeping_call(pid_t tid) const;

  /// From maps alone: `flags` stay empty; about 0.3 us an area.
  [[nodiscard]] Result<Layout> layout() const;
  /// With VmFlags and protection keys from smaps: walks the page tables, milliseconds a GiB; never in a
  /// freeze.
  [[nodiscard]] Result<Layout> detailed_layout() const;

  [[nodiscard]] std::string path(std::string_view rest) const;  ///< "/proc/PID/" + rest

 private:
  [[nodiscard]] Result<uint64_t> memory_in_status(std::string_view name) const;

  PidFd pidfd_;
};

/// The text of maps or smaps taken apart. Pure. Errors: Corrupt naming the line.
Result<Layout> parse_layout(std::string_view text);
Result<Stat> parse_stat(std::string_view text);

}  // namespace godwit::tracee
