// A target that sees whether anybody meddled with it: all general registers, red zone, vector registers
// (AVX-512 where there is), mask registers, MXCSR, x87, signal mask and alternate stack are set, spun upon,
// and compared.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace godwit::tracee {

struct CheckReport {
  std::atomic<int> rounds{0};   ///< of the thread that checks its registers
  std::atomic<int> sleeps{0};   ///< of the threads that check their waits
  std::atomic<int> handled{0};  ///< signals that reached a handler
  /// KERNEL: epoll_wait and sigtimedwait end with EINTR when an engine dies in the microseconds between their
  /// stop and its fix-up, as they do after SIGSTOP and SIGCONT (signal(7)). Nothing else may show it.
  std::atomic<int> interrupted{0};
  std::atomic<int> wrong{0};
  std::atomic<int> tids[4]{};  ///< the leader and the sleepers
  char what[200] = {};

  void report(const char* text, long a = 0, long b = 0);
};

/// Runs for ever. The calling thread checks its registers; others sleep, poll and wait, and check that they
/// do it for long enough. With `signals`, two timers interrupt the checking thread thousands of times a
/// second.
void run_checker(CheckReport& report, bool signals, const std::function<void()>& ready);

}  // namespace godwit::tracee
