// Bench `mapping-cache`: what a page of another process costs to read, by how the reader gets at it. COLO's
// lesson for Xen was never to map and unmap the same page for each batch; here the ways that set something up
// for each batch stand beside those that keep it, on the same pages, in turn. One JSON object a row:
// nanoseconds a page.
// `--quick` for a look. The other process is a child with as much memory as fits no cache, half of it
// anonymous, half a memfd; a batch is every second page from some place on.
#include <fcntl.h>
#include <liburing.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "engine/base/mapping.h"
#include "engine/tracee/memory.h"
#include "tests/bench/figures.h"

namespace godwit::tracee {
namespace {

using bench::Samples;

constexpr size_t kMemory = 128_MiB;  // of each kind
constexpr size_t kMostPages = 256;   // in a batch: 1 MiB
constexpr size_t kPagesASample = 1024;

template <typename T>
T must(Result<T> result) {
  if (result.ok()) return result.take();
  fmt::print(stderr, "mapping_cache_bench: {}\n", result.error().message());
  std::exit(1);
}
void must(bool holds, const char* what) {
  if (holds) return;
  std::perror(what);
  std::exit(1);
}

/// The pages of one batch, by their number in either half.
struct Batch {
  size_t first, count;
  [[nodiscard]] size_t page(size_t i) const { return first + 2 * i; }
};

/// The child: waits for requests in memory that both share, and copies pages into it, as code that runs
/// inside the target would.
class Target {
 public:
  Target()
      : anonymous_(must(Mapping::anonymous(kMemory))),
        memfd_(::memfd_create("mapping-cache", MFD_CLOEXEC)),
        desk_(must(Mapping::create(sizeof(Desk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS))) {
    must(memfd_.get() >= 0 && ::ftruncate(memfd_.get(), kMemory) == 0, "memfd");
    shared_ = ::mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_SHARED, memfd_.get(), 0);
    must(shared_ != MAP_FAILED, "mmap");
    ::madvise(anonymous_.data(), kMemory, MADV_NOHUGEPAGE);
    pid_ = ::fork();
    if (pid_ == 0) serve();
    copy(Batch{0, 1});  // its memory is filled then
  }
  ~Target() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(shared_, kMemory);
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int memfd() const { return memfd_.get(); }
  [[nodiscard]] const std::byte* shared() const { return static_cast<const std::byte*>(shared_); }
  /// Where the child has it.
  [[nodiscard]] uint64_t anonymous(size_t page) const {
    return reinterpret_cast<uint64_t>(anonymous_.data()) + page * kPageSize;
  }
  /// Lets the child copy; the pages are in copied() then.
  void copy(Batch batch) {
    Desk& desk = this->desk();
    desk.batch = batch;
    desk.asked.fetch_add(1);
    futex(desk.asked, FUTEX_WAKE, 1);
    while (desk.answered.load() != desk.asked.load()) futex(desk.answered, FUTEX_WAIT, desk.asked.load() - 1);
  }
  [[nodiscard]] const std::byte* copied() const { return desk().window; }

 private:
  struct Desk {
    std::atomic<uint32_t> asked, answered;
    Batch batch;
    std::byte window[kMostPages * kPageSize];
  };
  [[nodiscard]] Desk& desk() const { return *reinterpret_cast<Desk*>(desk_.data()); }
  static void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
    ::syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
  }

  [[noreturn]] void serve() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t page = 0; page < kMemory / kPageSize; ++page) {
      std::memset(anonymous_.data() + page * kPageSize, static_cast<int>(page % 251), kPageSize);
      std::memset(static_cast<std::byte*>(shared_) + page * kPageSize, static_cast<int>(page % 251),
                  kPageSize);
    }
    Desk& desk = this->desk();
    while (true) {
      while (desk.asked.load() == desk.answered.load()) futex(desk.asked, FUTEX_WAIT, desk.answered.load());
      for (size_t i = 0; i < desk.batch.count; ++i) {
        const std::byte* const page = anonymous_.data() + desk.batch.page(i) * kPageSize;
        std::memcpy(desk.window + i * kPageSize, page, kPageSize);
      }
      desk.answered.store(desk.asked.load());
      futex(desk.answered, FUTEX_WAKE, 1);
    }
  }

  Mapping anonymous_;
  Fd memfd_;
  Mapping desk_;
  void* shared_ = nullptr;
  pid_t pid_ = 0;
};

/// Where the pages end up.
using Room = std::vector<std::byte>;

Fd open_memory(pid_t pid) {
  Fd fd(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC));
  must(fd.get() >= 0, "/proc/PID/mem");
  return fd;
}

void pread_pages(int memory, const Target& target, Batch batch, Room& room) {
  for (size_t i = 0; i < batch.count; ++i) {
    const auto at = static_cast<off_t>(target.anonymous(batch.page(i)));
    must(::pread(memory, room.data() + i * kPageSize, kPageSize, at) == kPageSize, "pread");
  }
}

std::vector<AddressRange> ranges_of(const Target& target, Batch batch) {
  std::vector<AddressRange> ranges;
  for (size_t i = 0; i < batch.count; ++i) {
    const uint64_t at = target.anonymous(batch.page(i));
    ranges.push_back(range_of(at, at + kPageSize));
  }
  return ranges;
}

void stop_and_read(const Memory& memory, const Target& target, Batch batch, Room& room) {
  const pid_t pid = target.pid();
  must(::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) == 0, "PTRACE_SEIZE");
  must(::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) == 0, "PTRACE_INTERRUPT");
  must(::waitpid(pid, nullptr, __WALL) == pid, "waitpid");
  must(memory.read_ranges(ranges_of(target, batch), std::span(room).first(batch.count * kPageSize)).ok(),
       "process_vm_readv");
  must(::ptrace(PTRACE_DETACH, pid, nullptr, nullptr) == 0, "PTRACE_DETACH");
}

void map_and_copy(const Target& target, Batch batch, Room& room) {
  for (size_t i = 0; i < batch.count; ++i) {
    const auto at = static_cast<off_t>(batch.page(i) * kPageSize);
    void* const page = ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED | MAP_POPULATE, target.memfd(), at);
    must(page != MAP_FAILED, "mmap");
    std::memcpy(room.data() + i * kPageSize, page, kPageSize);
    ::munmap(page, kPageSize);
  }
}

/// One mapping around all pages of the batch.
void map_span_and_copy(const Target& target, Batch batch, Room& room) {
  const size_t size = (2 * batch.count - 1) * kPageSize;
  void* const pages = ::mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_POPULATE, target.memfd(),
                             static_cast<off_t>(batch.first * kPageSize));
  must(pages != MAP_FAILED, "mmap");
  for (size_t i = 0; i < batch.count; ++i)
    std::memcpy(room.data() + i * kPageSize, static_cast<std::byte*>(pages) + 2 * i * kPageSize, kPageSize);
  ::munmap(pages, size);
}

/// A ring that reads /proc/PID/mem, all pages of a batch with one call.
class RingReader {
 public:
  explicit RingReader(int memory) : memory_(memory) {
    must(io_uring_queue_init(kMostPages, &ring_, 0) == 0, "io_uring");
  }
  ~RingReader() { io_uring_queue_exit(&ring_); }
  RingReader(const RingReader&) = delete;
  RingReader& operator=(const RingReader&) = delete;

  void read(const Target& target, Batch batch, Room& room) {
    for (size_t i = 0; i < batch.count; ++i)
      io_uring_prep_read(io_uring_get_sqe(&ring_), memory_, room.data() + i * kPageSize, kPageSize,
                         target.anonymous(batch.page(i)));
    must(io_uring_submit_and_wait(&ring_, static_cast<unsigned>(batch.count)) >= 0, "io_uring_enter");
    for (size_t i = 0; i < batch.count; ++i) {
      io_uring_cqe* done = nullptr;
      must(io_uring_wait_cqe(&ring_, &done) == 0 && done->res == kPageSize, "a read of the ring");
      io_uring_cqe_seen(&ring_, done);
    }
  }

 private:
  io_uring ring_{};
  int memory_;
};

struct Way {
  std::string name;
  bool per_batch;  // sets up and takes down for each batch
  std::function<void(Batch, Room&)> read;
};

std::vector<Way> ways_to(Target& target, const Fd& memory, const Memory& reader, RingReader& ring) {
  const pid_t pid = target.pid();
  return {
      {"open /proc/PID/mem, pread, close", true,
       [&target, pid](Batch b, Room& room) { pread_pages(open_memory(pid).get(), target, b, room); }},
      {"ptrace stop, process_vm_readv, detach", true,
       [&](Batch b, Room& room) { stop_and_read(reader, target, b, room); }},
      {"mmap each page of a memfd, copy, munmap", true,
       [&target](Batch b, Room& room) { map_and_copy(target, b, room); }},
      {"mmap the batch of a memfd, copy, munmap", true,
       [&target](Batch b, Room& room) { map_span_and_copy(target, b, room); }},
      {"memfd mapped once, copy", false,
       [&target](Batch b, Room& room) {
         for (size_t i = 0; i < b.count; ++i)
           std::memcpy(room.data() + i * kPageSize, target.shared() + b.page(i) * kPageSize, kPageSize);
       }},
      {"/proc/PID/mem kept open, pread", false,
       [&](Batch b, Room& room) { pread_pages(memory.get(), target, b, room); }},
      {"/proc/PID/mem kept open, io_uring", false, [&](Batch b, Room& room) { ring.read(target, b, room); }},
      {"copied inside the target", false,
       [&target](Batch b, Room& room) {
         target.copy(b);
         room[0] = target.copied()[0];
         room[b.count * kPageSize - 1] = target.copied()[b.count * kPageSize - 1];
       }},
      {"process_vm_readv", false,
       [&](Batch b, Room& room) {
         must(reader.read_ranges(ranges_of(target, b), std::span(room).first(b.count * kPageSize)).ok(),
              "process_vm_readv");
       }},
  };
}

constexpr const char* kChosen = "process_vm_readv";

/// Whatever the way, the pages that come are those that were asked for.
void check(const Way& way, size_t pages) {
  Room room(kMostPages * kPageSize);
  const Batch batch{1000, pages};
  way.read(batch, room);
  const auto right = [&](size_t i) { return std::to_integer<size_t>(room[i]); };
  errno = 0;
  must(right(0) == batch.page(0) % 251 && right(pages * kPageSize - 1) == batch.page(pages - 1) % 251,
       way.name.c_str());
}

constexpr size_t kSizes[] = {1, 64, kMostPages};

/// Nanoseconds a page of one way with batches of one size.
struct Measured {
  const Way* way;
  size_t pages;
  Samples nanos;
};

void measure(Measured& one, size_t begin, Room& room) {
  const double nanos = bench::nanos_of([&] {
    for (size_t done = 0; done < kPagesASample; done += one.pages)
      one.way->read(Batch{begin + 2 * done, one.pages}, room);
  });
  one.nanos.add(nanos / static_cast<double>(kPagesASample));
}

void run(const std::vector<Way>& ways, size_t rounds) {
  std::vector<Measured> all;
  for (const size_t pages : kSizes) {
    for (const Way& way : ways) {
      check(way, pages);
      all.push_back({&way, pages, {}});
    }
  }
  Room room(kMostPages * kPageSize);
  const size_t there = kMemory / kPageSize;
  for (size_t round = 0; round < rounds; ++round) {
    // Each at its own distance: nobody finds in the cache what another has just read.
    for (size_t i = 0; i < all.size(); ++i)
      measure(all[i], (round * 2 * kPagesASample + i * there / all.size()) % (there - 2 * kPagesASample),
              room);
  }
  const auto chosen = [&](size_t pages) -> const Samples& {
    return std::find_if(all.begin(), all.end(),
                        [&](const Measured& m) { return m.way->name == kChosen && m.pages == pages; })
        ->nanos;
  };
  for (const Measured& one : all) {
    bench::Row(one.way->name)
        .number("pages", static_cast<double>(one.pages))
        .number("set up for each batch", one.way->per_batch ? 1 : 0)
        .samples("ns a page", one.nanos)
        .samples("of process_vm_readv", bench::ratio(one.nanos, chosen(one.pages)))
        .samples("of process_vm_readv, 1 MiB", bench::ratio(one.nanos, chosen(kMostPages)));
  }
}

}  // namespace
}  // namespace godwit::tracee

int main(int argc, char** argv) {
  using namespace godwit::tracee;
  const size_t rounds = argc > 1 && std::strcmp(argv[1], "--quick") == 0 ? 9 : 51;
  Target target;
  const godwit::Fd memory = open_memory(target.pid());
  const Memory reader = must(Memory::open(target.pid()));
  RingReader ring(memory.get());
  run(ways_to(target, memory, reader, ring), rounds);
  return 0;
}
