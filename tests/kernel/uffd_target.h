// A forked child for the uffd tests: it runs the step that the test asks for and answers when it is done, so
// that nothing waits by time. Both sides share one control page.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/pidfd.h"
#include "engine/model/address_range.h"

namespace godwit::uffd::test {

class Target {
 public:
  struct Control {
    std::atomic<uint64_t> a, b, c, d;  // whatever test and child agree on
    std::atomic<int> uffd;
  };
  using Step = std::function<void(Control&)>;

  /// The child numbers the steps; each runs in the child when run(n) asks for it.
  explicit Target(std::vector<Step> steps) : steps_(std::move(steps)) {
    control_ = static_cast<Control*>(
        ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int ask[2], answer[2];
    EXPECT_EQ(::pipe2(ask, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(answer, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) serve(ask[0], answer[1]);
    ask_ = Fd(ask[1]);
    answer_ = Fd(answer[0]);
    ::close(ask[0]);
    ::close(answer[1]);
  }
  ~Target() {
    kill();
    ::munmap(control_, kPageSize);
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  void run(int step) {
    begin(step);
    finish();
  }
  void begin(int step) {
    ASSERT_EQ(::write(ask_.get(), &step, sizeof step), static_cast<ssize_t>(sizeof step));
  }
  void finish() {
    int done = 0;
    ASSERT_EQ(::read(answer_.get(), &done, sizeof done), static_cast<ssize_t>(sizeof done))
        << "the child died";
  }

  /// A fresh userfaultfd of the child, as an engine gets it by injection and pidfd_getfd.
  Fd make_uffd() {
    run(kMakeUffd);
    auto process = PidFd::open(pid_);
    EXPECT_TRUE(process.ok());
    auto fd = process->get_fd(control_->uffd);
    EXPECT_TRUE(fd.ok()) << (fd.ok() ? "" : fd.error().message());
    run(kCloseUffd);
    return fd.take();
  }

  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  std::vector<std::byte> read(AddressRange range) const {
    std::vector<std::byte> bytes(range.size());
    const iovec local{bytes.data(), bytes.size()};
    const iovec remote{reinterpret_cast<void*>(range.start.value()), bytes.size()};
    EXPECT_EQ(::process_vm_readv(pid_, &local, 1, &remote, 1, 0), static_cast<ssize_t>(bytes.size()));
    return bytes;
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  Control& control() { return *control_; }

 private:
  static constexpr int kMakeUffd = -1, kCloseUffd = -2;

  [[noreturn]] void serve(int ask, int answer) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int step = 0;
    while (::read(ask, &step, sizeof step) == static_cast<ssize_t>(sizeof step)) {
      if (step == kMakeUffd) {
        control_->uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
      } else if (step == kCloseUffd) {
        ::close(control_->uffd);
      } else {
        steps_[static_cast<size_t>(step)](*control_);
      }
      if (::write(answer, &step, sizeof step) != static_cast<ssize_t>(sizeof step)) break;
    }
    ::_exit(0);
  }

  std::vector<Step> steps_;
  Control* control_ = nullptr;
  pid_t pid_ = 0;
  Fd ask_, answer_;
};

inline uint64_t map_pages(size_t pages, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1,
                          uint64_t at = 0) {
  void* p = ::mmap(reinterpret_cast<void*>(at), pages * kPageSize, PROT_READ | PROT_WRITE,
                   flags | (at != 0 ? MAP_FIXED : 0), fd, 0);
  return p == MAP_FAILED ? 0 : reinterpret_cast<uint64_t>(p);
}
/// Room of its own, with unmapped neighbours, so that nothing merges by chance.
inline uint64_t map_apart(size_t pages, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
  const uint64_t room = map_pages(pages + 2);
  ::munmap(reinterpret_cast<void*>(room), (pages + 2) * kPageSize);
  return map_pages(pages, flags, fd, room + kPageSize);
}
inline void touch(uint64_t base, size_t page, uint8_t value) {
  std::memset(reinterpret_cast<void*>(base + page * kPageSize), value, 64);
}
inline AddressRange pages_at(uint64_t base, size_t first, size_t count) {
  return range_of(base + first * kPageSize, base + (first + count) * kPageSize);
}

}  // namespace godwit::uffd::test
