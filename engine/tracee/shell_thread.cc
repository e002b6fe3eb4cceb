#include "engine/tracee/shell_thread.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>

#include "engine/base/fd.h"
#include "engine/tracee/shell.h"

namespace godwit::tracee {
namespace {

thread_local ShellThreadContext* current_context = nullptr;

int close_all_between(unsigned first, unsigned last, unsigned flags) {
  return static_cast<int>(::syscall(SYS_close_range, first, last, flags));
}

/// A table of its own, empty but for `kept`.
Status leave_descriptors(int kept) {
  const unsigned keep = static_cast<unsigned>(kept);
  // The first call copies nothing above `keep` and leaves the engine's table alone.
  if (close_all_between(keep + 1, ~0U, CLOSE_RANGE_UNSHARE) != 0)
    return fail_errno("close_range(CLOSE_RANGE_UNSHARE)", "the shell's thread");
  if (keep > 0 && close_all_between(0, keep - 1, 0) != 0)
    return fail_errno("close_range", "the shell's thread");
  return {};
}

}  // namespace

ShellThreadContext* shell_thread_context() {
  return current_context;
}

struct ShellThread::State {
  std::mutex mutex;
  std::condition_variable changed;
  const std::function<Status()>* work = nullptr;
  Status result;
  bool finished = false;  ///< the work given last
  bool stop = false;
  Fd lifeline;  ///< the write end: nobody writes
  ShellThreadContext context;
  std::thread thread;

  void serve(int kept);
  Status hand_over(const std::function<Status()>& given);
};

void ShellThread::State::serve(int kept) {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  current_context = &context;
  context.lifeline = kept;
  std::unique_lock lock(mutex);
  result = leave_descriptors(kept);
  finished = true;
  changed.notify_all();
  for (;;) {
    changed.wait(lock, [this] { return work != nullptr || stop; });
    if (work == nullptr) break;
    const std::function<Status()>* todo = std::exchange(work, nullptr);
    lock.unlock();
    Status got = (*todo)();
    lock.lock();
    result = std::move(got);
    finished = true;
    changed.notify_all();
  }
}

Status ShellThread::State::hand_over(const std::function<Status()>& given) {
  std::unique_lock lock(mutex);
  work = &given;
  finished = false;
  changed.notify_all();
  changed.wait(lock, [this] { return finished; });
  return std::move(result);
}

ShellThread::ShellThread(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<ShellThread>> ShellThread::start() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2", "the shell's thread");
  const Fd read_end(ends[0]);
  auto state = std::make_unique<State>();
  state->lifeline = Fd(ends[1]);
  State* s = state.get();
  try {
    s->thread = std::thread([s, kept = read_end.get()] { s->serve(kept); });
  } catch (const std::system_error& error) {
    return fail_errno("start a thread", "the shell's thread", error.code().value());
  }
  std::unique_ptr<ShellThread> made(new ShellThread(std::move(state)));
  std::unique_lock lock(s->mutex);
  s->changed.wait(lock, [s] { return s->finished; });
  TRY(std::exchange(s->result, Status{}));
  return made;
}

ShellThread::~ShellThread() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_all();
  }
  state_->thread.join();
}

Status ShellThread::call(const std::function<Status()>& work) {
  if (current_context == &state_->context) return work();
  return state_->hand_over(work);
}

}  // namespace godwit::tracee
