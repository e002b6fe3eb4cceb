// What the tests of the shell share: a shell on its thread, a program for it to run, pipes between it and the
// test.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <cstring>

#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/pidfd.h"
#include "engine/base/units.h"
#include "engine/tracee/shell.h"

extern "C" {  // shell_fixture.cc
extern const char test_code[];
extern const char test_report[];
extern const char test_after_read[];
extern const char test_fork[];
extern const char test_end[];
}

namespace godwit::tracee {

constexpr uint64_t kCodeAt = 0x7e1234560000;
constexpr uint64_t kDataAt = kCodeAt + kPageSize;
constexpr pid_t kPid = 4242;

inline uint64_t address_of(const char* label) {
  return kCodeAt + static_cast<uint64_t>(label - test_code);
}

/// A word for EXPECT: empty when all is well.
inline std::string text(const Status& status) {
  return status.ok() ? "" : status.error().message();
}

struct Report {
  uint64_t r12 = 0, r15 = 0, xmm[2]{}, rbp = 0;
};

/// Ends of pipes that the shell gets by number.
struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
  Fd read, write;
};

/// One shell and its thread.
class Workshop {
 public:
  Workshop() : thread_(ShellThread::start().take()) {}
  ~Workshop() { EXPECT_EQ(text(end_shell()), ""); }

  Status end_shell() {
    return thread_->call([&] {
      shell_.reset();
      return Status{};
    });
  }
  Status spawn(ShellOptions options) {
    return thread_->call([&]() -> Status {
      shell_ = TRY(Shell::spawn(options));
      return {};
    });
  }
  Status spawn(pid_t pid) { return spawn(ShellOptions{.pid = pid}); }
  Status run(Batch& batch) { return run(shell_->inner_pid(), batch); }
  Status run(pid_t tid, Batch& batch) {
    return thread_->call([&] { return shell_->run(tid, batch); });
  }

  Status map_code() {
    Batch batch;
    for (const uint64_t at : {kCodeAt, kDataAt})
      batch.call(SYS_mmap,
                 {at, kPageSize, PROT_READ | PROT_WRITE | PROT_EXEC,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0},
                 "mmap(test code)");
    TRY(run(batch));
    const iovec local{const_cast<char*>(test_code), static_cast<size_t>(test_end - test_code)};
    const iovec remote{reinterpret_cast<void*>(kCodeAt), local.iov_len};
    if (::process_vm_writev(shell_->pid(), &local, 1, &remote, 1, 0) < 0)
      return fail_errno("process_vm_writev", "test code");
    return {};
  }

  /// Our descriptor `ours` becomes number `theirs` of the shell.
  Status give(const Fd& ours, int theirs) {
    return thread_->call([&]() -> Status {
      const PidFd engine = TRY(PidFd::open(::getpid()));
      const Fd got = TRY(engine.get_fd(ours.get()));
      if (::dup2(got.get(), theirs) < 0) return fail_errno("dup2", fmt::format("fd {}", theirs));
      return {};
    });
  }

  Status set(pid_t tid, const std::function<void(Registers&)>& change, uint64_t mask = 0) {
    return thread_->call([&]() -> Status {
      Registers registers = TRY(read_registers(shell_->outer_tid(tid)));
      registers.general.orig_rax = ~uint64_t{0};
      change(registers);
      TRY(shell_->set_registers(tid, registers));
      return shell_->set_signal_mask(tid, mask);
    });
  }
  Status set_report(pid_t tid, int fd, uint64_t place, uint64_t value) {
    return set(tid, [&](Registers& r) {
      r.general.rip = address_of(test_report);
      r.general.rdi = static_cast<uint64_t>(fd);
      r.general.rsi = place;
      r.general.r12 = value;
      r.general.r15 = value + 1;
      r.general.rbp = value + 2;
      const uint64_t xmm0[2] = {value + 3, value + 4};
      std::memcpy(r.xstate.data() + 160, xmm0, sizeof xmm0);
      r.xstate[512] |= std::byte{2};  // XSTATE_BV: SSE state is there
    });
  }
  /// After the release it waits in read(from), restarted, and then reports the result to `to`.
  Status set_blocked_read(pid_t tid, int from, int to, uint64_t mask = 0) {
    return set(
        tid,
        [&](Registers& r) {
          r.general.rip = address_of(test_after_read);
          r.general.rax = static_cast<uint64_t>(-512);  // ERESTARTSYS
          r.general.orig_rax = SYS_read;
          r.general.rdi = static_cast<uint64_t>(from);
          r.general.rsi = kDataAt + 128;
          r.general.rdx = 1;
          r.general.r12 = static_cast<uint64_t>(to);
          r.general.r13 = kDataAt;
        },
        mask);
  }
  /// The thread is interrupted in the call of `batch`; after the release it goes on and reports the result to
  /// `to`.
  Status set_interrupted(pid_t tid, Batch& batch, int to, int64_t& result) {
    TRY(thread_->call([&]() -> Status {
      result = TRY(shell_->interrupt_inside(tid, batch));
      return {};
    }));
    return set(tid, [&](Registers& r) {
      r.general.rip = address_of(test_after_read);
      r.general.rax = static_cast<uint64_t>(result);
      r.general.orig_rax = SYS_restart_syscall;
      r.general.r12 = static_cast<uint64_t>(to);
      r.general.r13 = kDataAt;
    });
  }
  Status create_thread(pid_t tid) {
    return thread_->call([&] { return shell_->create_thread(tid); });
  }
  Status release() {
    return thread_->call([&] { return shell_->release(RemoteAddr(kCodeAt)); });
  }
  /// The wait status of the released process, and of its namespace's init.
  std::vector<int> ends() {
    std::vector<int> all;
    for (const pid_t pid : shell_->children()) {
      int status = -1;
      EXPECT_EQ(::waitpid(pid, &status, 0), pid);
      all.push_back(status);
    }
    return all;
  }

  std::unique_ptr<ShellThread> thread_;
  std::unique_ptr<Shell> shell_;
};

class ShellTest : public testing::Test, protected Workshop {
 protected:
  /// A shell ignores what its engine ignores; this test may have been started by nohup.
  void SetUp() override {
    for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  }
};

/// Lets a program of set_blocked_read() go on, and takes what its read(2) returned.
inline int64_t finish_read(const Fd& to, const Fd& reports) {
  int64_t result = 0;
  EXPECT_EQ(::write(to.get(), "x", 1), 1);
  EXPECT_EQ(::read(reports.get(), &result, sizeof result), static_cast<ssize_t>(sizeof result));
  return result;
}

inline Report read_report(const Fd& from) {
  Report report;
  EXPECT_EQ(::read(from.get(), &report, sizeof report), static_cast<ssize_t>(sizeof report));
  return report;
}
inline void expect_report(const Report& got, uint64_t value) {
  EXPECT_EQ(got.r12, value);
  EXPECT_EQ(got.r15, value + 1);
  EXPECT_EQ(got.rbp, value + 2);
  EXPECT_EQ(got.xmm[0], value + 3);
  EXPECT_EQ(got.xmm[1], value + 4);
}

}  // namespace godwit::tracee
