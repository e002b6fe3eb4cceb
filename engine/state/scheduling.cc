#include "engine/state/scheduling.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "engine/base/files.h"
#include "engine/state/process_rooms.h"

namespace godwit::state {
namespace {

constexpr int kIoPriorityOfProcess = 1;  // IOPRIO_WHO_PROCESS, linux/ioprio.h

constexpr uint64_t kResetOnFork = 1;  // SCHED_FLAG_RESET_ON_FORK, linux/sched.h

/// linux/sched/types.h, SCHED_ATTR_SIZE_VER1.
struct SchedAttr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
  uint32_t util_min, util_max;
};

Result<SchedAttr> read_attr(pid_t tid) {
  SchedAttr attr{};
  if (::syscall(SYS_sched_getattr, tid, &attr, sizeof attr, 0) != 0)
    return fail_errno("sched_getattr", fmt::format("tid {}", tid));
  return attr;
}

bool is_fair(uint32_t policy) {
  return policy == SCHED_OTHER || policy == SCHED_BATCH || policy == SCHED_IDLE;
}

/// KERNEL: since 6.12 `runtime` is the slice of an ordinary thread, and setting it, even to what everybody
/// has, pins it. The main thread of this engine has it; others may be boosted just now.
uint64_t usual_slice() {
  const auto attr = read_attr(::getpid());
  return attr.ok() && attr.value().policy == SCHED_OTHER ? attr.value().runtime : 0;
}

}  // namespace

Status capture_scheduling(pid_t tid, wire::ThreadState& state) {
  state.set_scheduling(bytes_of(TRY(read_attr(tid))));
  state.set_nice(::getpriority(PRIO_PROCESS, static_cast<id_t>(tid)));
  cpu_set_t cpus[8];
  const long used = ::syscall(SYS_sched_getaffinity, tid, sizeof cpus, cpus);
  if (used < 0) return fail_errno("sched_getaffinity", fmt::format("tid {}", tid));
  state.set_affinity(cpus, static_cast<size_t>(used));
  const long priority = ::syscall(SYS_ioprio_get, kIoPriorityOfProcess, tid);
  state.set_io_priority(priority < 0 ? 0 : static_cast<uint32_t>(priority));
  return {};
}

Status build_scheduling(const tracee::Shell& shell, const wire::ThreadState& state) {
  const pid_t tid = shell.outer_tid(state.tid());
  // An affinity to no processor of this host is left open.
  (void)::syscall(SYS_sched_setaffinity, tid, state.affinity().size(), state.affinity().data());
  if (::setpriority(PRIO_PROCESS, static_cast<id_t>(tid), state.nice()) != 0)
    return fail_errno("setpriority", fmt::format("tid {}", state.tid()));
  auto wanted = TRY(value_of<SchedAttr>("threads", state.scheduling()));
  const auto is = read_attr(tid);
  if (is.ok() && std::memcmp(&is.value(), &wanted, sizeof wanted) == 0) return {};
  static const uint64_t usual = usual_slice();
  const bool fair = is_fair(wanted.policy);
  if (fair && wanted.runtime == usual) wanted.runtime = 0;
  if (::syscall(SYS_sched_setattr, tid, &wanted, 0) != 0)
    return fail_errno("sched_setattr", fmt::format("tid {}", state.tid()));
  // KERNEL: a real-time thread has no timer slack, and coming back it gets the one that it began with
  // (__setscheduler_params).
  if (fair && is.ok() && !is_fair(is.value().policy))
    return write_file(fmt::format("/proc/{}/timerslack_ns", tid), std::to_string(state.timer_slack()));
  return {};
}

/// KERNEL: nice values do not help on a processor that a real-time thread holds, such as the source's engine
/// where both are one host; and the scheduler is slow to move the thread to another.
void hurry(const tracee::Shell& shell, pid_t inner_tid) {
  SchedAttr attr{};
  attr.size = sizeof attr;
  attr.policy = SCHED_FIFO;
  attr.flags = kResetOnFork;
  attr.priority = 1;
  (void)::syscall(SYS_sched_setattr, shell.outer_tid(inner_tid), &attr, 0);
}

void calm(const tracee::Shell& shell, pid_t inner_tid) {
  SchedAttr attr{};
  attr.size = sizeof attr;
  attr.policy = SCHED_OTHER;
  (void)::syscall(SYS_sched_setattr, shell.outer_tid(inner_tid), &attr, 0);
}

void hurry_all(const tracee::Shell& shell) {
  for (const pid_t tid : shell.threads()) hurry(shell, tid);
}

}  // namespace godwit::state
