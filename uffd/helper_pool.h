// Threads made ahead, so that none is created while the target is frozen. Used by page_scan to split one
// scan. Thread: run() from one thread at a time.
#pragma once

#include <sched.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace godwit::uffd {

class HelperPool {
 public:
  explicit HelperPool(unsigned helpers);
  ~HelperPool();
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;

  /// Calls work(0) here and work(1) ... work(size()-1) on the helpers at the same time; returns when all
  /// have.
  void run(const std::function<void(unsigned)>& work);
  /// Helpers and the caller.
  [[nodiscard]] unsigned size() const { return static_cast<unsigned>(threads_.size()) + 1; }

 private:
  void serve(unsigned index);
  void keep_off_this_cpu();

  std::mutex mutex_;
  std::condition_variable started_, finished_;
  const std::function<void(unsigned)>* work_ = nullptr;
  uint64_t generation_ = 0;
  unsigned active_ = 0;
  bool ending_ = false;
  cpu_set_t allowed_{};
  int avoided_cpu_ = -1;
  std::vector<std::thread> threads_;
};

}  // namespace godwit::uffd
