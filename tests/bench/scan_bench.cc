// What one look at a process's memory costs, beside memcpy in the same run: collect() and survey() of
// wp_tracker over memory that is clean, sparsely written, all written, huge or untouched, with one thread and
// two; then the release. Prints one JSON object a line: microseconds per GiB, median and quartiles. Size in
// MiB as the argument (512).
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/mapping.h"
#include "engine/base/pidfd.h"
#include "uffd/wp_tracker.h"

namespace godwit::uffd {
namespace {

constexpr int kRuns = 9;

template <typename T>
T must(Result<T> result) {
  if (result.ok()) return result.take();
  fmt::print(stderr, "scan_bench: {}\n", result.error().message());
  std::exit(1);
}

struct Shared {
  uint64_t base;
  int uffd;
};

/// A child with `size` bytes of memory; it writes every `stride`-th page each time it is asked to.
class Subject {
 public:
  Subject(size_t size, bool huge, bool populate) : size_(size) {
    room_ = must(Mapping::create(kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS));
    shared_ = reinterpret_cast<Shared*>(room_.data());
    if (::pipe(ask_) != 0 || ::pipe(answer_) != 0) std::exit(1);
    pid_ = ::fork();
    if (pid_ == 0) serve(huge, populate);
    write_every(0);
  }
  ~Subject() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    for (const int fd : {ask_[0], ask_[1], answer_[0], answer_[1]}) ::close(fd);
  }
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  void write_every(uint64_t stride) {
    if (::write(ask_[1], &stride, sizeof stride) < 0 || ::read(answer_[0], &stride, sizeof stride) <= 0)
      std::exit(1);
  }
  WpTracker track(unsigned threads) {
    write_every(kMakeUffd);
    Fd fd = must(must(PidFd::open(pid_)).get_fd(shared_->uffd));
    write_every(kCloseUffd);
    WpTracker tracker = must(WpTracker::create(pid_, std::move(fd), threads));
    must(tracker.track({range()}));
    return tracker;
  }
  [[nodiscard]] AddressRange range() const { return range_of(shared_->base, shared_->base + size_); }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  static constexpr uint64_t kMakeUffd = UINT64_MAX, kCloseUffd = UINT64_MAX - 1;

  [[noreturn]] void serve(bool huge, bool populate) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    const uint64_t room =
        reinterpret_cast<uint64_t>(::mmap(nullptr, size_ + 2_MiB, PROT_READ | PROT_WRITE, flags, -1, 0));
    shared_->base = (room + 2_MiB - 1) & ~uint64_t{2_MiB - 1};
    ::madvise(reinterpret_cast<void*>(shared_->base), size_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (populate) std::memset(reinterpret_cast<void*>(shared_->base), 1, size_);
    for (uint64_t stride = 0; ::read(ask_[0], &stride, sizeof stride) > 0;) {
      if (stride == kMakeUffd) {
        shared_->uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
      } else if (stride == kCloseUffd) {
        ::close(shared_->uffd);
      } else {
        for (uint64_t at = 0; stride != 0 && at < size_; at += stride * kPageSize) touch(at);
      }
      if (::write(answer_[1], &stride, sizeof stride) < 0) break;
    }
    ::_exit(0);
  }

  void touch(uint64_t at) {
    auto* word = reinterpret_cast<volatile uint64_t*>(shared_->base + at);
    *word = *word + 1;
  }

  size_t size_;
  Mapping room_;
  Shared* shared_ = nullptr;
  int ask_[2]{}, answer_[2]{};
  pid_t pid_ = 0;
};

void report(const char* what, unsigned threads, size_t size, std::vector<double> micros) {
  std::sort(micros.begin(), micros.end());
  const double per_gib = static_cast<double>(1024_MiB) / static_cast<double>(size);
  const auto at = [&](size_t quarter) { return micros[(micros.size() - 1) * quarter / 4] * per_gib; };
  fmt::print(
      "{{\"what\":\"{}\",\"threads\":{},\"runs\":{},\"us_per_gib\":{:.1f},\"p25\":{:.1f},\"p75\":{:.1f}}}\n",
      what, threads, micros.size(), at(2), at(1), at(3));
}

double time_of(const std::function<void()>& work) {
  const Nanos start = monotonic_now();
  work();
  return static_cast<double>((monotonic_now() - start).count()) / 1000;
}

void bench_memcpy(size_t size) {
  const Mapping from = must(Mapping::anonymous(size)), to = must(Mapping::anonymous(size));
  std::memset(from.data(), 1, size);
  std::memset(to.data(), 1, size);
  std::vector<double> micros;
  for (int i = 0; i < kRuns; i++)
    micros.push_back(time_of([&] { std::memcpy(to.data(), from.data(), size); }));
  report("memcpy", 1, size, micros);
}

void bench_tracker(Subject& subject, const char* kind, unsigned threads,
                   const std::vector<uint64_t>& strides) {
  WpTracker tracker = subject.track(threads);
  const AddressRange range = subject.range();
  must(tracker.collect(range));
  for (const uint64_t stride : strides) {
    std::vector<double> micros;
    for (int i = 0; i < kRuns; i++) {
      subject.write_every(stride);
      micros.push_back(time_of([&] { must(tracker.collect(range)); }));
    }
    report(fmt::format("collect {} {}", kind, stride == 0 ? "clean" : fmt::format("1/{} written", stride))
               .c_str(),
           threads, range.size(), micros);
  }
  std::vector<double> micros;
  must(tracker.collect(range));
  for (int i = 0; i < kRuns; i++) micros.push_back(time_of([&] { must(tracker.survey(range)); }));
  report(fmt::format("survey {}", kind).c_str(), threads, range.size(), micros);
  subject.write_every(strides.size() > 1 ? strides[1] : 0);
  micros.clear();
  for (int i = 0; i < kRuns; i++) micros.push_back(time_of([&] { must(tracker.last_pass(range)); }));
  report(fmt::format("last pass {}", kind).c_str(), threads, range.size(), micros);
}

/// Why the tracker asks whose page it is only in file mappings.
void bench_file_question(Subject& subject) {
  PageScanner scanner = must(PageScanner::create(subject.pid(), 1));
  for (const uint64_t extra : {uint64_t{0}, uapi::kPageIsFile}) {
    std::vector<double> micros;
    for (int i = 0; i < kRuns; i++) {
      PageRegions found;
      const ScanQuery query{0, uapi::kPageIsPresent, 0, uapi::kPageIsPresent | extra};
      micros.push_back(time_of([&] { (void)scanner.scan(subject.range(), query, found); }));
    }
    report(extra == 0 ? "plain scan" : "plain scan asking FILE", 1, subject.range().size(), micros);
  }
}

void bench_release(size_t size, bool in_pieces) {
  std::vector<double> micros;
  for (int i = 0; i < 3; i++) {
    Subject subject(size, false, true);
    auto tracker = std::make_unique<WpTracker>(subject.track(1));
    must(tracker->collect(subject.range()));
    micros.push_back(time_of([&] { in_pieces ? tracker->release() : tracker.reset(); }));
  }
  report(in_pieces ? "release area by area" : "release at once", 1, size, micros);
}

void run(size_t size) {
  bench_memcpy(size);
  {
    Subject small(size, false, true);
    bench_file_question(small);
    for (const unsigned threads : {1u, 2u}) bench_tracker(small, "4K", threads, {0, 256, 1});
  }
  {
    Subject huge(size, true, true);
    bench_tracker(huge, "THP", 1, {0});
  }
  {
    Subject empty(size, false, false);
    bench_tracker(empty, "untouched", 1, {0});
  }
  bench_release(size, false);
  bench_release(size, true);
}

}  // namespace
}  // namespace godwit::uffd

int main(int argc, char** argv) {
  const size_t mib = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 512;
  godwit::uffd::run(std::max<size_t>(mib, 2) << 20);
}
