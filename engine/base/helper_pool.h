// Threads made ahead, so that none is created while the target is frozen. Users: the scans of page tables,
// the lanes of a migration. Thread: run() from one thread at a time.
#pragma once

#include <sched.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace godwit {

/// That this process may use.
unsigned processors();

class HelperPool {
 public:
  explicit HelperPool(unsigned helpers);
  ~HelperPool();
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;

  /// Calls work(0) here and, on each helper that comes before that returns, work(1) ... work(size()-1) beside
  /// it; returns when all have. Nobody waits for a helper that sleeps too long, so the work is claimed piece
  /// by piece, not dealt out by number.
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

}  // namespace godwit
