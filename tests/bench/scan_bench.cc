// What one look at a process's memory costs, beside memcpy in the same run: collect(), survey() and
// last_pass() of both trackers over memory that is clean, sparsely written, all written, huge or untouched,
// with one thread and two; what a first write to a clean page costs the process; then the release. Prints one
// JSON object a line, median and quartiles: microseconds per GiB, or nanoseconds a write. Size in MiB as the
// argument (512).
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/mapping.h"
#include "engine/base/pidfd.h"
#include "uffd/sync_tracker.h"
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
  std::atomic<uint64_t> nanos;  ///< of the last writing
};

enum class Tracker : uint8_t { kUffd, kUffdSync };
constexpr std::array kTrackers = {Tracker::kUffd, Tracker::kUffdSync};
const char* name_of(Tracker tracker) {
  return tracker == Tracker::kUffd ? "uffd" : "uffd-sync";
}

/// A child with `size` bytes of memory; it writes every `stride`-th page each time it is asked to, one after
/// the other or far apart.
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
  /// One page in 16, each far from the one before.
  void write_scattered() { write_every(kScattered); }
  [[nodiscard]] double last_nanos() const { return static_cast<double>(shared_->nanos); }
  std::unique_ptr<DirtyTracker> track(Tracker which, unsigned threads) {
    write_every(kMakeUffd);
    Fd fd = must(must(PidFd::open(pid_)).get_fd(shared_->uffd));
    write_every(kCloseUffd);
    std::unique_ptr<DirtyTracker> tracker;
    if (which == Tracker::kUffdSync)
      tracker = must(SyncTracker::create(pid_, std::move(fd), threads));
    else
      tracker = std::make_unique<WpTracker>(must(WpTracker::create(pid_, std::move(fd), threads)));
    must(tracker->track({range()}));
    return tracker;
  }
  [[nodiscard]] AddressRange range() const { return range_of(shared_->base, shared_->base + size_); }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  static constexpr uint64_t kMakeUffd = UINT64_MAX, kCloseUffd = UINT64_MAX - 1, kScattered = UINT64_MAX - 2;

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
        const Nanos begin = monotonic_now();
        write(stride);
        shared_->nanos = static_cast<uint64_t>((monotonic_now() - begin).count());
      }
      if (::write(answer_[1], &stride, sizeof stride) < 0) break;
    }
    ::_exit(0);
  }

  void write(uint64_t stride) {
    if (stride == kScattered) {
      // 7919 is prime, so that all pages differ.
      const uint64_t pages = size_ / kPageSize;
      for (uint64_t i = 0; i < pages / 16; i++) touch(i * 16 * 7919 % pages * kPageSize);
      return;
    }
    for (uint64_t at = 0; stride != 0 && at < size_; at += stride * kPageSize) touch(at);
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
  micros.reserve(kRuns);
  for (int i = 0; i < kRuns; i++)
    micros.push_back(time_of([&] { std::memcpy(to.data(), from.data(), size); }));
  report("memcpy", 1, size, micros);
}

void bench_tracker(Subject& subject, Tracker which, const char* memory, unsigned threads,
                   const std::vector<uint64_t>& strides) {
  const auto owner = subject.track(which, threads);
  DirtyTracker& tracker = *owner;
  const std::string kind = fmt::format("{} {}", name_of(which), memory);
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
  micros.reserve(kRuns);
  must(tracker.collect(range));
  for (int i = 0; i < kRuns; i++) micros.push_back(time_of([&] { must(tracker.survey(range)); }));
  report(fmt::format("survey {}", kind).c_str(), threads, range.size(), micros);
  subject.write_every(strides.size() > 1 ? strides[1] : 0);
  micros.clear();
  for (int i = 0; i < kRuns; i++) micros.push_back(time_of([&] { must(tracker.last_pass(range)); }));
  report(fmt::format("last pass {}", kind).c_str(), threads, range.size(), micros);
}

/// What a first write to a clean page costs the process.
void bench_writes(Subject& subject) {
  const auto report_writes = [&](const std::string& what, uint64_t writes, std::vector<double> nanos) {
    std::sort(nanos.begin(), nanos.end());
    const auto at = [&](size_t quarter) {
      return nanos[(nanos.size() - 1) * quarter / 4] / static_cast<double>(writes);
    };
    fmt::print("{{\"what\":\"{}\",\"runs\":{},\"ns_a_write\":{:.0f},\"p25\":{:.0f},\"p75\":{:.0f}}}\n", what,
               nanos.size(), at(2), at(1), at(3));
  };
  const uint64_t pages = subject.range().pages();
  for (const char* how : {"one after the other", "scattered"}) {
    const bool scattered = how[0] == 's';
    const auto measure = [&](const std::string& name, DirtyTracker* tracker) {
      std::vector<double> nanos;
      for (int i = 0; i < kRuns; i++) {
        if (tracker != nullptr) must(tracker->collect(subject.range()));
        if (scattered)
          subject.write_scattered();
        else
          subject.write_every(1);
        nanos.push_back(subject.last_nanos());
      }
      report_writes(fmt::format("first write {} {}", name, how), scattered ? pages / 16 : pages, nanos);
    };
    measure("untracked", nullptr);
    for (const Tracker which : kTrackers) measure(name_of(which), subject.track(which, 1).get());
  }
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

void bench_release(size_t size, Tracker which, bool in_pieces) {
  std::vector<double> micros;
  for (int i = 0; i < 3; i++) {
    Subject subject(size, false, true);
    auto tracker = subject.track(which, 1);
    must(tracker->collect(subject.range()));
    micros.push_back(time_of([&] { in_pieces ? tracker->release() : tracker.reset(); }));
  }
  report(fmt::format("release {} {}", name_of(which), in_pieces ? "area by area" : "at once").c_str(), 1,
         size, micros);
}

void run(size_t size) {
  bench_memcpy(size);
  {
    Subject small(size, false, true);
    bench_file_question(small);
    for (const Tracker which : kTrackers) {
      for (const unsigned threads : {1u, 2u}) bench_tracker(small, which, "4K", threads, {0, 256, 1});
    }
    bench_writes(small);
  }
  {
    Subject huge(size, true, true);
    for (const Tracker which : kTrackers) bench_tracker(huge, which, "THP", 1, {0});
  }
  {
    Subject empty(size, false, false);
    for (const Tracker which : kTrackers) bench_tracker(empty, which, "untouched", 1, {0});
  }
  bench_release(size, Tracker::kUffd, false);
  for (const Tracker which : kTrackers) bench_release(size, which, true);
}

}  // namespace
}  // namespace godwit::uffd

int main(int argc, char** argv) {
  const size_t mib = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 512;
  godwit::uffd::run(std::max<size_t>(mib, 2) << 20);
}
