#include "uffd/helper_pool.h"

#include <csignal>

namespace godwit::uffd {

HelperPool::HelperPool(unsigned helpers) {
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
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    generation_++;
    running_ = static_cast<unsigned>(threads_.size());
  }
  started_.notify_all();
  work(0);
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return running_ == 0; });
}

void HelperPool::serve(unsigned index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    started_.wait(lock, [&] { return ending_ || generation_ != seen; });
    if (ending_) return;
    seen = generation_;
    lock.unlock();
    (*work_)(index);
    lock.lock();
    if (--running_ == 0) finished_.notify_one();
  }
}

}  // namespace godwit::uffd
