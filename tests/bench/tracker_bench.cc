// Bench `tracker`: what it costs to find what a process has written. First a round of each tracker over
// memory size and number of pages written, in turn, each with a process of its own; then one look of each
// kind, per GiB, at memory that is clean, sparsely written, all written, huge or untouched, with one thread
// and two, beside memcpy; what a first write to a clean page costs the process; and the release. One JSON
// object a row, in microseconds or nanoseconds. `--quick` for a look.
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

#include "ebpf/write_log.h"
#include "engine/base/clock.h"
#include "engine/base/mapping.h"
#include "engine/base/pidfd.h"
#include "tests/bench/figures.h"
#include "uffd/sync_tracker.h"
#include "uffd/wp_tracker.h"

namespace godwit::uffd {
namespace {

using bench::Samples;

constexpr int kRuns = 9;

template <typename T>
T must(Result<T> result) {
  if (result.ok()) return result.take();
  fmt::print(stderr, "tracker_bench: {}\n", result.error().message());
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
  /// So many pages, each far from the one before.
  void write_pages(uint64_t count) { write_every(kCounted + count); }
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
  static constexpr uint64_t kCounted = uint64_t{1} << 62;  // and behind it the number

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
    const uint64_t pages = size_ / kPageSize;
    if (stride == kScattered) return write_far_apart(pages / 16);
    if (stride >= kCounted) return write_far_apart(stride - kCounted);
    for (uint64_t at = 0; stride != 0 && at < size_; at += stride * kPageSize) touch(at);
  }
  void write_far_apart(uint64_t count) {
    // Odd, so that all pages of a power of two differ; and far from the page before.
    const uint64_t pages = size_ / kPageSize, stride = pages * 5 / 13 | 1;
    for (uint64_t i = 0; i < count; i++) touch(i * stride % pages * kPageSize);
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

void report(const std::string& what, unsigned threads, size_t size, const Samples& micros) {
  const double gib = static_cast<double>(size) / static_cast<double>(1024_MiB);
  bench::Row(what).number("threads", threads).samples("us a GiB", micros, 1 / gib);
}

double micros_of(const std::function<void()>& work) {
  return bench::nanos_of(work) / 1000;
}

void bench_memcpy(size_t size) {
  const Mapping from = must(Mapping::anonymous(size)), to = must(Mapping::anonymous(size));
  std::memset(from.data(), 1, size);
  std::memset(to.data(), 1, size);
  Samples micros;
  for (int i = 0; i < kRuns; i++) micros.add(micros_of([&] { std::memcpy(to.data(), from.data(), size); }));
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
    Samples micros;
    for (int i = 0; i < kRuns; i++) {
      subject.write_every(stride);
      micros.add(micros_of([&] { must(tracker.collect(range)); }));
    }
    const std::string written = stride == 0 ? "clean" : fmt::format("1/{} written", stride);
    report(fmt::format("collect {} {}", kind, written), threads, range.size(), micros);
  }
  Samples micros;
  must(tracker.collect(range));
  for (int i = 0; i < kRuns; i++) micros.add(micros_of([&] { must(tracker.survey(range)); }));
  report(fmt::format("survey {}", kind), threads, range.size(), micros);
  subject.write_every(strides.size() > 1 ? strides[1] : 0);
  micros = Samples();
  for (int i = 0; i < kRuns; i++) micros.add(micros_of([&] { must(tracker.last_pass(range)); }));
  report(fmt::format("last pass {}", kind), threads, range.size(), micros);
}

/// What a first write to a clean page costs the process.
void bench_writes(Subject& subject) {
  const uint64_t pages = subject.range().pages();
  for (const char* how : {"one after the other", "scattered"}) {
    const bool scattered = how[0] == 's';
    const auto measure = [&](const std::string& name, DirtyTracker* tracker) {
      Samples nanos;
      for (int i = 0; i < kRuns; i++) {
        if (tracker != nullptr) must(tracker->collect(subject.range()));
        if (scattered)
          subject.write_scattered();
        else
          subject.write_every(1);
        nanos.add(subject.last_nanos());
      }
      bench::Row(fmt::format("first write {} {}", name, how))
          .samples("ns a write", nanos, 1 / static_cast<double>(scattered ? pages / 16 : pages));
    };
    measure("untracked", nullptr);
    for (const Tracker which : kTrackers) measure(name_of(which), subject.track(which, 1).get());
  }
}

/// Why the tracker asks whose page it is only in file mappings.
void bench_file_question(Subject& subject) {
  PageScanner scanner = must(PageScanner::create(subject.pid(), 1));
  for (const uint64_t extra : {uint64_t{0}, uapi::kPageIsFile}) {
    Samples micros;
    for (int i = 0; i < kRuns; i++) {
      PageRegions found;
      const ScanQuery query{0, uapi::kPageIsPresent, 0, uapi::kPageIsPresent | extra};
      micros.add(micros_of([&] { (void)scanner.scan(subject.range(), query, found); }));
    }
    report(extra == 0 ? "plain scan" : "plain scan asking FILE", 1, subject.range().size(), micros);
  }
}

void bench_release(size_t size, Tracker which, bool in_pieces) {
  Samples micros;
  for (int i = 0; i < 3; i++) {
    Subject subject(size, false, true);
    auto tracker = subject.track(which, 1);
    must(tracker->collect(subject.range()));
    micros.add(micros_of([&] { in_pieces ? tracker->release() : tracker.reset(); }));
  }
  report(fmt::format("release {} {}", name_of(which), in_pieces ? "area by area" : "at once"), 1, size,
         micros);
}

/// One way to find what was written since its last round. A tracker alone looks at all of the memory; a guide
/// that knows where to look is one more class and one more line in contenders().
class Contender {
 public:
  virtual ~Contender() = default;
  virtual void round() = 0;
};

class WholeLook final : public Contender {
 public:
  WholeLook(Subject& subject, Tracker which) : range_(subject.range()), tracker_(subject.track(which, 1)) {}
  void round() override { must(tracker_->collect(range_)); }

 private:
  AddressRange range_;
  std::unique_ptr<DirtyTracker> tracker_;
};

/// The tracker looks only where the log of write faults heard one, or everywhere when that is more than a
/// guide is worth.
class GuidedLook final : public Contender {
 public:
  explicit GuidedLook(Subject& subject)
      : range_(subject.range()),
        tracker_(subject.track(Tracker::kUffd, 1)),
        log_(must(ebpf::FaultLog::create(subject.pid()))) {}
  void round() override {
    const auto heard = log_->heard(range_.pages() / kPagesAWrite);
    if (!heard || first_) {
      must(tracker_->collect(range_));
      first_ = false;
      return;
    }
    for (const AddressRange& part : *heard) {
      if (part.overlaps(range_)) must(tracker_->collect(intersect(part, range_)));
    }
  }

 private:
  static constexpr size_t kPagesAWrite = 400;  // that a whole look sees in the time that one more part costs
  AddressRange range_;
  std::unique_ptr<DirtyTracker> tracker_;
  std::unique_ptr<ebpf::FaultLog> log_;
  bool first_ = true;
};

struct Entry {
  std::string name;
  std::function<std::unique_ptr<Contender>(Subject&)> make;
};
std::vector<Entry> contenders() {
  std::vector<Entry> entries = {
      {"uffd", [](Subject& s) { return std::make_unique<WholeLook>(s, Tracker::kUffd); }},
      {"uffd-sync", [](Subject& s) { return std::make_unique<WholeLook>(s, Tracker::kUffdSync); }},
  };
  const auto log = ebpf::FaultLog::create(::getpid());
  if (log.ok())
    entries.push_back({"ebpf", [](Subject& s) { return std::make_unique<GuidedLook>(s); }});
  else
    fmt::print(stderr, "tracker: without ebpf: {}\n", log.error().message());
  return entries;
}

bool fits(size_t bytes) {
  return bytes < static_cast<size_t>(::sysconf(_SC_AVPHYS_PAGES)) * kPageSize / 4 * 3;
}

/// Rounds of all contenders over one size, in turn.
void bench_rounds(size_t size, const std::vector<uint64_t>& written) {
  const std::vector<Entry> entries = contenders();
  if (!fits(size * entries.size()))
    return fmt::print(stderr, "tracker: no room for {} times {} MiB\n", entries.size(), size >> 20);
  std::vector<std::unique_ptr<Subject>> subjects;
  std::vector<std::unique_ptr<Contender>> at_work;
  for (const Entry& entry : entries) {
    subjects.push_back(std::make_unique<Subject>(size, false, true));
    at_work.push_back(entry.make(*subjects.back()));
    at_work.back()->round();
  }
  for (const uint64_t count : written) {
    std::vector<Samples> micros(entries.size());
    for (int run = 0; run < kRuns; run++) {
      for (size_t i = 0; i < entries.size(); i++) {
        subjects[i]->write_pages(std::min(count, size / kPageSize));
        micros[i].add(micros_of([&] { at_work[i]->round(); }));
      }
    }
    for (size_t i = 0; i < entries.size(); i++) {
      bench::Row("round")
          .word("tracker", entries[i].name)
          .number("MiB", static_cast<double>(size >> 20))
          .number("written", static_cast<double>(std::min(count, size / kPageSize)))
          .samples("us", micros[i]);
    }
  }
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
  using namespace godwit;
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  std::vector<size_t> sizes = {64_MiB, 256_MiB};
  if (!quick) sizes.insert(sizes.end(), {1024_MiB, 4096_MiB});
  for (const size_t size : sizes) uffd::bench_rounds(size, {0, 100, 1000, 10000});
  uffd::run(quick ? 64_MiB : 512_MiB);
}
