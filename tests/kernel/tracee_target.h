// A forked child to freeze and to inject into, with memory that it shares with the test.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <new>

#include "engine/tracee/process.h"

#define ASSERT_OK(expr)                                                            \
  do {                                                                             \
    const auto& assert_ok_ = (expr);                                               \
    ASSERT_TRUE(assert_ok_.ok()) << #expr << ": " << assert_ok_.error().message(); \
  } while (0)
#define EXPECT_OK(expr)                                                            \
  do {                                                                             \
    const auto& expect_ok_ = (expr);                                               \
    EXPECT_TRUE(expect_ok_.ok()) << #expr << ": " << expect_ok_.error().message(); \
  } while (0)

namespace godwit::tracee {

/// One T in memory that fork() shares.
template <typename T>
class Shared {
 public:
  Shared() {
    void* at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) std::abort();
    value_ = new (at) T();
  }
  ~Shared() { ::munmap(value_, sizeof(T)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

/// A child that runs `work` (which must not return for as long as the test needs it) and dies with the test.
class Target {
 public:
  /// `work` gets a function to call once it is ready; the constructor returns after that.
  explicit Target(const std::function<void(const std::function<void()>& ready)>& work) {
    int ready[2];
    if (::pipe(ready) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(ready[0]);
      work([&] {
        const char byte = 'r';
        if (::write(ready[1], &byte, 1) != 1) std::abort();
      });
      ::_exit(0);
    }
    ::close(ready[1]);
    char byte = 0;
    if (::read(ready[0], &byte, 1) != 1) ADD_FAILURE() << "the target never became ready";
    ::close(ready[0]);
  }
  ~Target() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// The exit status (as waitpid gives it) of the child, which is then no more.
  int wait() {
    int status = -1;
    while (pid_ > 0 && ::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return status;
  }

 private:
  pid_t pid_ = 0;
};

/// Until `word` differs from `old`. Looks again and again, for a target that spins has nobody to wake.
inline void await_change(const std::atomic<int>& word, int old) {
  while (word.load() == old) ::usleep(200);
}

/// The state letter of /proc/PID/stat.
inline char state_letter(pid_t pid) {
  const auto process = Process::open(pid);
  if (!process.ok()) return 'X';
  const auto stat = process.value().stat();
  return stat.ok() ? stat.value().state : 'X';
}

}  // namespace godwit::tracee
