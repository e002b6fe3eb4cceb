// Writes to pages that a call had pinned before they were collected: no tracker sees them, and nothing that
// is read after await_pinned_writes() lacks them.
#include "engine/migration/pinned_writes.h"

#include <linux/io_uring.h>
#include <sys/uio.h>

#include "engine/base/files.h"
#include "tests/kernel/uffd_tracker_fixture.h"

namespace godwit::migration {
namespace {

using namespace uffd::test;  // NOLINT(google-build-using-namespace): the fixture that this test is made of

constexpr size_t kPages = 2048, kAtOnce = 4;
constexpr int kRounds = 400;

enum class Way { kReadDirect, kProcessWrite, kOwnMemory };

/// Fills the pages at `at` through the kernel, in a way that pins them.
class Filler {
 public:
  Filler(Way way, int file) : way_(way), bytes_(kAtOnce * kPageSize) {
    const std::string path = "/proc/self/fd/" + std::to_string(file);
    direct_ = Fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
    memory_ = Fd(::open("/proc/self/mem", O_RDWR | O_CLOEXEC));
  }
  bool fill(uint64_t at, uint64_t seed) {
    std::memset(bytes_.data(), static_cast<int>(seed >> 24), bytes_.size());
    const iovec local{bytes_.data(), bytes_.size()};
    const iovec remote{reinterpret_cast<void*>(at), bytes_.size()};
    const auto all = static_cast<ssize_t>(bytes_.size());
    switch (way_) {
      case Way::kReadDirect:
        return ::pread(direct_.get(), remote.iov_base, remote.iov_len,
                       static_cast<off_t>(seed % 16 * kPageSize)) == all;
      case Way::kProcessWrite:
        return ::process_vm_writev(::getpid(), &local, 1, &remote, 1, 0) == all;
      default:
        return ::pwrite(memory_.get(), bytes_.data(), bytes_.size(), static_cast<off_t>(at)) == all;
    }
  }

 private:
  Way way_;
  std::vector<char> bytes_;
  Fd direct_, memory_;
};

Fd make_pattern() {
  Fd file(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  for (int page = 0; page < 32; page++) {
    const std::vector<char> bytes(kPageSize, static_cast<char>('a' + page));
    EXPECT_EQ(::write(file.get(), bytes.data(), bytes.size()), ssize_t{kPageSize});
  }
  EXPECT_EQ(::fsync(file.get()), 0);
  return file;
}

class PinnedWritesTest : public TrackerTest, public testing::WithParamInterface<std::tuple<Way, Kind>> {
  void SetUp() override { skip_without(std::get<Kind>(GetParam())); }
};

TEST_P(PinnedWritesTest, NoneIsLost) {
  const Fd pattern = make_pattern();
  const auto [way, kind] = GetParam();
  Target target({[](auto& c) {
                   c.a = map_apart(kPages);
                   for (size_t i = 0; i < kPages; i++) touch(c.a, i, 1);
                 },
                 [&, way = way](auto& c) {
                   Filler filler(way, pattern.get());
                   for (uint64_t seed = 1; c.b == 0; c.c++) {
                     seed = seed * 6364136223846793005 + 1442695040888963407;
                     if (!filler.fill(c.a + (seed >> 33) % (kPages - kAtOnce) * kPageSize, seed)) ::_exit(3);
                   }
                 }});
  const auto owner = make_tracker(kind, target);
  DirtyTracker& tracker = *owner;
  target.run(0);
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  InterruptedCalls calls = InterruptedCalls::create(*process);
  const uint64_t base = target.control().a;
  const AddressRange range = pages_at(base, 0, kPages);
  track(tracker, range);
  std::vector<std::byte> copy(range.size());
  std::vector<Nanos> waits;
  const auto copy_round = [&] {
    const PageRuns written = collect(tracker, range);
    const Nanos begin = monotonic_now();
    const Status over = await_pinned_writes(*process, calls);
    ASSERT_TRUE(over.ok()) << over.error().message();
    waits.push_back(monotonic_now() - begin);
    for (const PageRun& run : written) {
      const auto bytes = target.read(run.range);
      std::memcpy(copy.data() + (run.range.start.value() - base), bytes.data(), bytes.size());
    }
  };
  target.begin(1);
  for (int round = 0; round < kRounds; round++) copy_round();
  target.control().b = 1;
  target.finish();
  copy_round();
  EXPECT_GT(target.control().c, 100U);  // it did write between the rounds
  EXPECT_EQ(target.read(range), copy);
  std::sort(waits.begin(), waits.end());
  std::printf("a wait takes %ld us (median of %zu)\n", static_cast<long>(to_micros(waits[waits.size() / 2])),
              waits.size());
}
// KERNEL: not own memory with uffd-sync: a write to /proc/PID/mem cannot wait for a handler and fails
// (uffd_sync_test.cc).
INSTANTIATE_TEST_SUITE_P(Ways, PinnedWritesTest,
                         testing::Values(std::tuple(Way::kReadDirect, Kind::kUffd),
                                         std::tuple(Way::kProcessWrite, Kind::kUffd),
                                         std::tuple(Way::kOwnMemory, Kind::kUffd),
                                         std::tuple(Way::kReadDirect, Kind::kUffdSync),
                                         std::tuple(Way::kProcessWrite, Kind::kUffdSync)));

/// A ring whose descriptor is closed and of which nothing is mapped; its thread has it registered.
class HiddenRing {
 public:
  explicit HiddenRing(void* buffer) {
    io_uring_params params{};
    const int ring = static_cast<int>(::syscall(SYS_io_uring_setup, 4, &params));
    const iovec vector{buffer, kPageSize};
    io_uring_rsrc_update slot{~0U, 0, static_cast<uint64_t>(ring)};
    ok_ = ::syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &vector, 1) == 0 &&
          ::syscall(SYS_io_uring_register, ring, IORING_REGISTER_RING_FDS, &slot, 1) == 1;
    ::close(ring);
    slot_ = slot.offset;
  }
  ~HiddenRing() {
    io_uring_rsrc_update slot{slot_, 0, 0};
    ::syscall(SYS_io_uring_register, slot_, IORING_UNREGISTER_RING_FDS | kByIndex, &slot, 1);
  }
  HiddenRing(const HiddenRing&) = delete;
  HiddenRing& operator=(const HiddenRing&) = delete;
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  static constexpr unsigned kByIndex = 1U << 31;  // linux/io_uring.h: IORING_REGISTER_USE_REGISTERED_RING
  bool ok_ = false;
  uint32_t slot_ = 0;
};

TEST_F(TrackerTest, ARegisteredBufferIsFoundWithoutADescriptorOrAMappingOfItsRing) {
  Target target({[](auto& c) { c.a = map_apart(1); },
                 [](auto& c) {
                   static std::unique_ptr<HiddenRing> ring;
                   if (ring) return ring.reset();
                   ring = std::make_unique<HiddenRing>(reinterpret_cast<void*>(c.a.load()));
                   c.c = ring->ok();
                 }});
  target.run(0);
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  const auto is_seen = [&] {
    const auto seen = has_unseen_writers(*process);
    EXPECT_TRUE(seen.ok());
    return seen.ok() && seen.value();
  };
  EXPECT_FALSE(is_seen());
  target.run(1);
  if (target.control().c == 0) GTEST_SKIP() << "no io_uring with registered rings (Linux 5.18)";
  EXPECT_TRUE(is_seen());
  target.run(1);
  // The kernel gives the buffers back a little later.
  for (const Nanos end = monotonic_now() + std::chrono::seconds(10); is_seen() && monotonic_now() < end;)
    ::usleep(1000);
  EXPECT_FALSE(is_seen());
}

TEST_F(TrackerTest, AThreadThatSleepsInACallOfAnotherKindIsNotDisturbed) {
  Target target({[](auto&) { ::pause(); }});
  target.begin(0);
  auto process = tracee::Process::open(target.pid());
  ASSERT_TRUE(process.ok());
  InterruptedCalls calls = InterruptedCalls::create(*process);
  const auto asleep_in = [&] {
    auto call = process->sleeping_call(target.pid());
    return call.ok() ? call->value_or(-2) : -3;
  };
  while (asleep_in() != SYS_pause) ::sched_yield();
  const auto switches = [&] {
    return std::string(field(process->status(target.pid()).take(), "voluntary_ctxt_switches:").value_or("?"));
  };
  const std::string before = switches();
  for (int i = 0; i < 10; i++) ASSERT_TRUE(await_pinned_writes(*process, calls).ok());
  EXPECT_EQ(switches(), before);
  EXPECT_EQ(asleep_in(), SYS_pause);
}

}  // namespace
}  // namespace godwit::migration
