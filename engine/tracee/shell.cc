#include "engine/tracee/shell.h"

#include <fmt/format.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "engine/base/units.h"
#include "engine/tracee/shell_state.h"
#include "engine/tracee/shell_thread.h"

namespace godwit::tracee {
namespace {

// Stacks grow down until 1 MiB (stack_guard_gap) below them, and heaps grow up.
constexpr uint64_t kMargin = 4_MiB;

}  // namespace

Shell::Shell(std::unique_ptr<State> state) : state_(std::move(state)) {}
Shell::~Shell() = default;

Shell::State::~State() {
  if (released) return;
  if (!tasks.empty() && !leader().ended) ::kill(leader().outer, SIGKILL);
  if (init > 0) ::kill(init, SIGKILL);
  int status = 0;
  if (shell_thread_context() != nullptr) {
    // All that this thread made, threads among them whose birth it had not yet seen.
    while (::waitpid(-1, &status, __WALL | __WNOTHREAD) > 0 || errno == EINTR) {
    }
    return;
  }
  // That thread is gone and traces nobody. ORDER: the shell first, or its init cannot end.
  if (!tasks.empty() && !leader().ended) ::waitpid(leader().outer, &status, __WALL);
  if (init > 0) ::waitpid(init, &status, __WALL);
}

std::string Shell::State::name(const ShellTask& task) const {
  if (tasks.empty()) return fmt::format("shell {}", task.inner);
  return fmt::format("thread {} of shell {}", task.inner, tasks.front().inner);
}

Result<ShellTask*> Shell::State::task(pid_t inner) {
  const auto it =
      std::find_if(tasks.begin(), tasks.end(), [&](const ShellTask& t) { return t.inner == inner; });
  if (it == tasks.end() || released)
    return fail(ErrorKind::kBug, released ? "use a released shell" : "find a thread",
                fmt::format("thread {} of the shell", inner));
  TRY(settle(*it));
  return &*it;
}

pid_t Shell::pid() const {
  return state_->leader().outer;
}
pid_t Shell::inner_pid() const {
  return state_->leader().inner;
}
bool Shell::released() const {
  return state_->released;
}
AddressRange Shell::scratch() const {
  return state_->scratch.range();
}

std::vector<pid_t> Shell::threads() const {
  std::vector<pid_t> tids;
  for (const ShellTask& task : state_->tasks) tids.push_back(task.inner);
  return tids;
}

pid_t Shell::outer_tid(pid_t inner) const {
  for (ShellTask& task : state_->tasks)
    if (task.inner == inner) return state_->settle(task).ok() ? task.outer : 0;
  return 0;
}

std::vector<pid_t> Shell::children() const {
  std::vector<pid_t> pids{pid()};
  if (state_->init > 0) pids.push_back(state_->init);
  return pids;
}

Status Shell::run(pid_t tid, Batch& batch) {
  return state_->run(*TRY(state_->task(tid)), batch);
}

Result<int64_t> Shell::interrupt_inside(pid_t tid, Batch& batch) {
  return state_->interrupt_inside(*TRY(state_->task(tid)), batch);
}

Status Shell::create_thread(pid_t tid) {
  State& s = *state_;
  ShellTask& leader = *TRY(s.task(inner_pid()));
  Batch batch;
  clone_args args{};
  args.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  const DataRef wanted = batch.put_value(tid);
  const DataRef block = batch.put_value(args);
  // The kernel reads the address of the number from the arguments, which therefore hold it as an address.
  args.set_tid = s.scratch.data_address(wanted.offset).value();
  args.set_tid_size = 1;
  std::memcpy(batch.data().data() + block.offset, &args, sizeof args);
  batch.call(SYS_clone3, {block, sizeof args}, fmt::format("clone3(set_tid {})", tid));
  s.born = 0;
  TRY(s.run(leader, batch));
  if (s.born == 0) return fail(ErrorKind::kBug, "clone3", s.name(leader), "no PTRACE_EVENT_CLONE was seen");
  // Traced from its birth, it stops before its first instruction (PTRACE_EVENT_STOP); on a busy machine it
  // may take its time to get there, and nobody has to wait for that now.
  s.tasks.push_back({.inner = tid, .outer = s.born, .parked = true, .newborn = true});
  return {};
}

Status Shell::end_thread(pid_t tid) {
  State& s = *state_;
  ShellTask& task = *TRY(s.task(tid));
  if (&task == &s.leader()) return fail(ErrorKind::kBug, "end a thread", s.name(task), "it is the leader");
  Batch batch;
  // ORDER: first, or the exit would write to memory of the process that is long used for something else.
  batch.call(SYS_set_tid_address, {0}, "set_tid_address(0)");
  batch.call(SYS_set_robust_list, {0, 24}, "set_robust_list(0)");
  TRY(s.run(task, batch));
  Batch last;
  last.call(SYS_exit, {0}, "exit");
  s.scratch.put_calls(last, 0, 1);
  TRY(s.begin(task, 1, PTRACE_CONT));
  while (!task.ended) {
    const int status = TRY(s.wait_status(task));
    if (WIFSIGNALED(status))
      return fail(ErrorKind::kTargetGone, "exit", s.name(task), "the shell was killed");
    if (!task.ended) TRY(s.resume(task, PTRACE_CONT));  // SIGSTOP or SIGCONT from outside
  }
  std::erase_if(s.tasks, [&](const ShellTask& t) { return t.inner == tid; });
  return {};
}

/// An inaccessible mapping of the scratch's size, where neither `layout` nor the shell's present memory is.
Result<RemoteAddr> Shell::State::reserve_hole(Layout layout, uint64_t margin) {
  constexpr int kTries = 32;
  for (int i = 0; i < kTries; ++i) {
    const std::optional<RemoteAddr> hole = find_hole(layout, ShellScratch::kSize, margin);
    if (!hole) break;
    Batch batch;
    const size_t call = batch.call_may_fail(
        SYS_mmap,
        {*hole, ShellScratch::kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0},
        "");
    TRY(run(leader(), batch));
    if (batch.result(call) == static_cast<int64_t>(hole->value())) return *hole;
    if (batch.result(call) != -EEXIST)
      return fail_errno(fmt::format("mmap(scratch at {})", *hole), name(leader()),
                        static_cast<int>(-batch.result(call)));
    // The shell has memory there that the layout does not know (yet, or no longer).
    const Vma taken{.range = {*hole, *hole + ShellScratch::kSize}};
    layout.insert(std::upper_bound(layout.begin(), layout.end(), taken,
                                   [](const Vma& a, const Vma& b) { return a.range.start < b.range.start; }),
                  taken);
  }
  return fail(ErrorKind::kUnsupported, "find a hole for the scratch area", name(leader()),
              "the process leaves no room in its address space");
}

Status Shell::keep_clear_of(const Layout& layout) {
  State& s = *state_;
  ShellTask& leader = *TRY(s.task(inner_pid()));
  const AddressRange old = s.scratch.range();
  const AddressRange near = range_of(old.start.value() - kMargin, old.end.value() + kMargin);
  const auto touches = [&](const Vma& vma) { return vma.range.overlaps(near); };
  if (std::none_of(layout.begin(), layout.end(), touches)) return {};
  const RemoteAddr hole = TRY(s.reserve_hole(layout, kMargin));
  // A second mapping of the same pages (old size 0), over the reservation.
  Batch place;
  place.call(SYS_mremap, {old.start, 0, ShellScratch::kSize, MREMAP_MAYMOVE | MREMAP_FIXED, hole},
             fmt::format("mremap(scratch to {})", hole));
  TRY(s.run(leader, place));
  s.scratch.moved_to(hole);
  Batch remove;
  remove.call(SYS_munmap, {old.start, old.size()}, "munmap(old scratch)");
  return s.run(leader, remove);
}

Status Shell::set_registers(pid_t tid, const Registers& registers) {
  State& s = *state_;
  ShellTask& task = *TRY(s.task(tid));
  // The leader comes to its last stop in release(); parking it here would be in vain.
  if (&task != &s.leader()) TRY(s.park(task));
  TRY(write_registers(task.outer, registers));
  task.final_registers = registers.general;
  task.in_place = true;
  return {};
}

Status Shell::set_signal_mask(pid_t tid, uint64_t mask) {
  TRY(state_->task(tid))->final_mask = mask;
  return {};
}

std::vector<pid_t> reap(std::span<const pid_t> pids) {
  std::vector<pid_t> ended;
  for (const pid_t pid : pids)
    if (::waitpid(pid, nullptr, WNOHANG) == pid) ended.push_back(pid);
  return ended;
}

}  // namespace godwit::tracee
