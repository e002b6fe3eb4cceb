#include "examples/writer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace godwit::examples {
namespace {

constexpr size_t kPage = 4096;
using Clock = std::chrono::steady_clock;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

/// The bytes [0, changed) of a page, from a number that it keeps at its end.
void fill(unsigned char* page, size_t changed, uint64_t seed) {
  std::minstd_rand random(static_cast<uint32_t>(seed) + 1);
  for (size_t i = 0; i < changed; ++i) page[i] = static_cast<unsigned char>(random() >> 8);
  std::memcpy(page + kPage - sizeof seed, &seed, sizeof seed);
}

bool holds(const unsigned char* page, size_t changed, uint64_t seed) {
  unsigned char wanted[kPage];
  std::memcpy(wanted, page, kPage);
  fill(wanted, changed, seed);
  return std::memcmp(page, wanted, kPage) == 0;
}

class Work {
 public:
  Work(const Pattern& pattern, int report)
      : pattern_(pattern),
        report_(report),
        changed_(static_cast<size_t>(pattern.entropy * (kPage - 8))),
        pages_(pattern.memory / kPage),
        hot_(std::max<size_t>(pattern.hot / kPage, 1)),
        seeds_(pages_) {
    void* memory =
        ::mmap(nullptr, pages_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die("mmap");
    memory_ = static_cast<unsigned char*>(memory);
    for (size_t i = 0; i < pages_; ++i) write(i);
  }

  [[noreturn]] void run() {
    const double pages_per_second =
        static_cast<double>(pattern_.bytes_per_second) / static_cast<double>(kPage);
    const auto began = Clock::now();
    const uint64_t before = told_.writes;
    for (;;) {
      const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
      const auto due = before + static_cast<uint64_t>(seconds * pages_per_second);
      while (told_.writes < due) write(choose());
      for (int i = 0; i < 8; ++i) check(random_() % pages_);
      if (::pwrite(report_, &told_, sizeof told_, 0) != sizeof told_) die("pwrite");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  size_t choose() {
    const bool hot = static_cast<double>(random_() % 1000) < pattern_.locality * 1000;
    return random_() % (hot ? std::min(hot_, pages_) : pages_);
  }
  void write(size_t page) {
    seeds_[page] = ++told_.writes;
    fill(memory_ + page * kPage, changed_, seeds_[page]);
  }
  void check(size_t page) {
    ++(holds(memory_ + page * kPage, changed_, seeds_[page]) ? told_.checked : told_.wrong);
  }

  Pattern pattern_;
  int report_;
  size_t changed_, pages_, hot_;
  std::vector<uint64_t> seeds_;
  unsigned char* memory_ = nullptr;
  std::mt19937_64 random_{1};
  Tidings told_;
};

/// A daemon's standard streams and session: what stays behind must not be held.
void let_go_of_everything(int keep) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd <= 2; ++fd) ::dup2(null, fd);
  ::dup2(keep, 3);
  ::close_range(4, ~0U, 0);
}

}  // namespace

Writer::Writer(const Pattern& pattern) {
  char name[] = "/tmp/godwit-example-XXXXXX";
  fd_ = ::mkstemp(name);
  if (fd_ < 0) die("mkstemp");
  path_ = name;
  const Tidings nothing;
  if (::pwrite(fd_, &nothing, sizeof nothing, 0) != sizeof nothing) die("pwrite");
  pid_ = ::fork();
  if (pid_ < 0) die("fork");
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    let_go_of_everything(fd_);
    Work(pattern, 3).run();
  }
}

Writer::~Writer() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  ::close(fd_);
  ::unlink(path_.c_str());
}

Tidings Writer::tidings() const {
  Tidings now;
  if (::pread(fd_, &now, sizeof now, 0) != sizeof now) die("pread");
  return now;
}

bool Writer::works_on(uint64_t pages) const {
  const uint64_t wanted = tidings().checked + pages;
  Tidings last;
  for (int idle = 0; idle < 10000; ++idle) {
    const Tidings now = tidings();
    if (now.wrong > 0) return false;
    if (now.checked >= wanted) return true;
    if (now.checked != last.checked) idle = 0;
    last = now;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace godwit::examples
