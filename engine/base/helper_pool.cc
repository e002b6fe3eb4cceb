#include "engine/base/helper_pool.h"

#include <algorithm>
#include <csignal>

namespace godwit {

unsigned processors() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  return static_cast<unsigned>(std::max(1, CPU_COUNT(&allowed)));
}

HelperPool::HelperPool(unsigned helpers) {
  if (::sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
  // The helpers serve no signals: those belong to the thread that made the pool.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned i = 1; i <= helpers; i++) threads_.emplace_back([this, i] { serve(i); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

HelperPool::~HelperPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void HelperPool::run(const std::function<void(unsigned)>& work) {
  keep_off_this_cpu();
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    generation_++;
  }
  started_.notify_all();
  work(0);
  std::unique_lock lock(mutex_);
  work_ = nullptr;  // who has not come yet need not
  finished_.wait(lock, [this] { return active_ == 0; });
}

/// KERNEL: a waking thread is readily placed on its waker's CPU, where it would wait until the work is done
/// (measured: in half of the runs a second thread then gained nothing). One system call a helper when the
/// caller has moved.
void HelperPool::keep_off_this_cpu() {
  const int cpu = ::sched_getcpu();
  if (cpu < 0 || cpu == avoided_cpu_ || CPU_COUNT(&allowed_) < 2) return;
  cpu_set_t others = allowed_;
  CPU_CLR(static_cast<size_t>(cpu), &others);
  for (std::thread& thread : threads_)
    ::pthread_setaffinity_np(thread.native_handle(), sizeof others, &others);
  avoided_cpu_ = cpu;
}

void HelperPool::serve(unsigned index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    started_.wait(lock, [&] { return ending_ || generation_ != seen; });
    if (ending_) return;
    seen = generation_;
    if (work_ == nullptr) continue;
    const std::function<void(unsigned)>& work = *work_;
    active_++;
    lock.unlock();
    work(index);
    lock.lock();
    if (--active_ == 0) finished_.notify_one();
  }
}

}  // namespace godwit
