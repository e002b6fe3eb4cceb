// The throttle on a real process: it slows, or only those who write; whoever holds it can freeze; sleeps and
// waits do not show it; and it is gone with its object.
#include "engine/migration/throttle.h"

#include <sys/epoll.h>
#include <sys/mman.h>

#include <thread>

#include "engine/base/files.h"
#include "engine/base/units.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::migration {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using tracee::Frozen;
using tracee::Shared;
using tracee::Target;

struct Work {
  std::atomic<uint64_t> counted{0}, written{0}, waits{0}, wrong{0};
};

constexpr int kWaitMillis = 30;

/// Each of its waits must end by itself, and not before its time.
void wait_again_and_again(Work& work) {
  const int epoll = ::epoll_create1(0);
  for (;;) {
    const Nanos start = monotonic_now();
    epoll_event event{};
    const timespec time{0, kWaitMillis * 1'000'000};
    const bool slept = ::nanosleep(&time, nullptr) == 0;
    const bool waited = ::epoll_wait(epoll, &event, 1, kWaitMillis) == 0;
    if (!slept || !waited || monotonic_now() - start < milliseconds(2 * kWaitMillis)) ++work.wrong;
    ++work.waits;
  }
}

/// Every page of it is a fault each time.
void write_anew(Work& work) {
  constexpr size_t kBytes = 1_MiB;
  void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (;;) {
    for (size_t i = 0; i < kBytes; i += kPageSize, ++work.written) static_cast<volatile char*>(at)[i] = 1;
    ::madvise(at, kBytes, MADV_DONTNEED);
  }
}

void run_work(Work& work, const std::function<void()>& ready) {
  std::thread([&work] {
    for (;;) ++work.counted;
  }).detach();
  std::thread([&work] { write_anew(work); }).detach();
  std::thread([&work] { wait_again_and_again(work); }).detach();
  while (work.counted == 0 || work.written == 0) ::sched_yield();
  ready();
  for (;;) ::pause();
}

class ThrottleTest : public testing::Test {
 protected:
  void start() {
    target_.emplace([this](const auto& ready) { run_work(*work_, ready); });
    auto opened = tracee::Process::open(target_->pid());
    ASSERT_OK(opened);
    process_.emplace(opened.take());
    calls_.emplace(InterruptedCalls::create(*process_));
    throttle_.emplace(*process_, *calls_, [this] { return limits_; });
  }
  struct Rate {
    double counted = 0, written = 0;
  };
  /// In a second, measured over some periods of the throttle. Time has to pass: that is what is measured.
  [[nodiscard]] Rate rate() const {
    const uint64_t counted = work_->counted, written = work_->written;
    const Nanos begin = monotonic_now();
    std::this_thread::sleep_for(milliseconds(500));
    const double time = to_seconds(monotonic_now() - begin);
    return {static_cast<double>(work_->counted - counted) / time,
            static_cast<double>(work_->written - written) / time};
  }
  void await_waits(uint64_t more) const {
    for (const uint64_t before = work_->waits; work_->waits < before + more;) ::sched_yield();
  }
  [[nodiscard]] bool traced() const {
    const auto tids = process_->threads();
    for (const pid_t tid : tids.value()) {
      const auto status = process_->status(tid);
      if (status.ok() && field(status.value(), "TracerPid:").value_or("") != "0") return true;
    }
    return false;
  }

  ThrottleLimits limits_{.automatic = true, .dirty_limit = 1_MiB};
  Shared<Work> work_;
  std::optional<Target> target_;
  std::optional<tracee::Process> process_;
  std::optional<InterruptedCalls> calls_;
  std::optional<Throttle> throttle_;
};

TEST_F(ThrottleTest, SlowsTheWholeProcessAndLetsItGoAgain) {
  start();
  const Rate free = rate();
  throttle_->set({95, false});
  (void)rate();
  const Rate slow = rate();
  EXPECT_LT(slow.counted, free.counted / 3);
  EXPECT_LT(slow.written, free.written / 3);
  throttle_.reset();
  EXPECT_FALSE(traced());
  EXPECT_GT(rate().counted, 2 * slow.counted);
}

TEST_F(ThrottleTest, ALimitOfWritesSlowsTheWriterAlone) {
  start();
  const Rate free = rate();
  throttle_->set({0, true});
  (void)rate();
  const Rate slow = rate();
  EXPECT_LT(slow.written, free.written / 3);
  EXPECT_GT(slow.counted, free.counted / 3);
  throttle_->set({});
  (void)rate();
  EXPECT_GT(rate().written, 2 * slow.written);
}

TEST_F(ThrottleTest, WhoHoldsItCanFreezeAndWaitsDoNotShowAnyOfIt) {
  start();
  for (const ThrottleLevel level :
       {ThrottleLevel{50, false}, ThrottleLevel{0, true}, ThrottleLevel{80, true}}) {
    throttle_->set(level);
    for (int i = 0; i < 60; ++i) {
      await_waits(i % 10 == 0 ? 1 : 0);
      const Throttle::Hold hold(&*throttle_);
      const Nanos begin = monotonic_now();
      auto frozen = Frozen::freeze(*process_);
      ASSERT_OK(frozen);
      EXPECT_OK(calls_->look(*frozen, begin));
      EXPECT_OK(frozen->finish());
    }
  }
  await_waits(3);
  EXPECT_EQ(work_->wrong, 0u);
  throttle_.reset();
  EXPECT_FALSE(traced());
}

TEST_F(ThrottleTest, OutlivesItsTarget) {
  start();
  throttle_->set({60, true});
  (void)rate();
  target_.reset();
  const Throttle::Hold hold(&*throttle_);
}

}  // namespace
}  // namespace godwit::migration
