// timerfds against the real kernel: when they expire next, on which clock, and what the kernel hides of that.
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <random>

#include "tests/kernel/state_fds_fixture.h"

namespace godwit::state {
namespace {

class TimerFdTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: ptrace of a child, namespaces";
  }
};

void set_timer(int fd, int flags, time_t seconds, time_t interval) {
  const itimerspec timer{{interval, 0}, {seconds, 1}};
  must(::timerfd_settime(fd, flags, &timer, nullptr));
}

TEST_F(TimerFdTest, TheyKeepTheirInstant) {
  Source source([&] {
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 3);
    set_timer(3, 0, 1000, 7);
    put(must(::timerfd_create(CLOCK_REALTIME, 0)), 4);
    set_timer(4, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, ::time(nullptr) + 500, 0);
    put(must(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC)), 5);  // not set
    put(must(::timerfd_create(CLOCK_REALTIME, 0)), 6);
    set_timer(6, 0, 300, 0);
  });
  const auto destination = expect_round_trip(source);
  const auto remaining = [&](int fd) {
    itimerspec theirs{};
    itimerspec ours{};
    EXPECT_EQ(::timerfd_gettime(source.process().pidfd().get_fd(fd).value().get(), &ours), 0);
    EXPECT_EQ(::timerfd_gettime(destination->fd(fd).get(), &theirs), 0);
    return std::abs(static_cast<double>(theirs.it_value.tv_sec - ours.it_value.tv_sec) +
                    static_cast<double>(theirs.it_value.tv_nsec - ours.it_value.tv_nsec) / 1e9);
  };
  // The instants are equal: what is left differs by the time between two calls, and never by a second.
  for (const int fd : {3, 4, 6}) EXPECT_LT(remaining(fd), 1.0) << fd;
}

/// Sets the timer from the last processor this thread may run on and leaves for the first: a timer that comes
/// due there while this thread looks at it has not rung yet.
void set_from_afar(int fd, Nanos first) {
  cpu_set_t all;
  CPU_ZERO(&all);
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  const auto stay_on = [](size_t processor) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    EXPECT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  };
  std::vector<size_t> processors;
  for (size_t i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &all)) processors.push_back(i);
  stay_on(processors.back());
  const itimerspec timer{{0, 0}, to_timespec(first)};
  must(::timerfd_settime(fd, 0, &timer, nullptr));
  stay_on(processors.front());
  EXPECT_EQ(::sched_setaffinity(0, sizeof all, &all), 0);
}

/// How often a timer that comes due around its capture was taken for one that is not set.
int count_missed(Source& source, int fd, int times) {
  const Fd timer = source.process().pidfd().get_fd(fd).take();
  std::mt19937 random(1);
  int missed = 0;
  for (int i = 0; i < times; ++i) {
    set_from_afar(timer.get(), std::chrono::microseconds(20 + random() % 300));
    wire::DescriptorTable table;
    EXPECT_TRUE(table.ParseFromString(source.capture().value()));
    wire::TimerFdState state;
    EXPECT_TRUE(state.ParseFromString(table.descriptions(0).payload()));
    if (state.remaining_ns() == 0 && state.ticks() == 0) ++missed;
  }
  return missed;
}

TEST_F(TimerFdTest, OneThatComesDueInTheFreezeIsNotTakenForOneThatIsNotSet) {
  Source source([&] { put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 3); });
  source.freeze();
  // One whose processor the host has taken away for longer than the patience is missed even so.
  EXPECT_LE(count_missed(source, 3, 1000), 1);
}

TEST_F(TimerFdTest, OneThatComesDueIsNeverMissedWhenTheKernelTells) {
  for (const int clock : {CLOCK_MONOTONIC, CLOCK_BOOTTIME_ALARM}) {
    Source source([&] { put(must(::timerfd_create(clock, TFD_NONBLOCK)), 3); });
    const Status asked = source.ask_kernel();
    if (!asked.ok()) GTEST_SKIP() << asked.error().message();
    source.freeze();
    EXPECT_EQ(count_missed(source, 3, 2000), 0) << clock;
  }
}

/// What the kernel has noted in each state of a timer.
TEST_F(TimerFdTest, TheKernelTellsSetFromIdle) {
  Source source([&] {
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 3);
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 4);
    set_timer(4, 0, 1000, 0);
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 5);
    const itimerspec once{{0, 0}, {0, 1}};
    must(::timerfd_settime(5, 0, &once, nullptr));
    pollfd ready{5, POLLIN, 0};
    must(::poll(&ready, 1, -1));
    put(must(::timerfd_create(CLOCK_BOOTTIME_ALARM, TFD_NONBLOCK)), 6);
    set_timer(6, 0, 1000, 0);
    put(must(::timerfd_create(CLOCK_REALTIME_ALARM, TFD_NONBLOCK)), 7);
  });
  auto files = ebpf::OpenFiles::create(source.pid());
  if (!files.ok()) GTEST_SKIP() << files.error().message();
  const auto facts = files.value().read().value();
  const auto timer = [&](int fd) { return ebpf::find_facts(facts, fd)->timer.value(); };
  EXPECT_TRUE(timer(3).idle());
  EXPECT_TRUE(timer(4).queued);
  EXPECT_FALSE(timer(5).queued);
  EXPECT_EQ(timer(5).ticks, 1U);
  EXPECT_TRUE(timer(6).queued);
  EXPECT_TRUE(timer(7).idle());
}

// The process's clock says that 100 s have passed since the freeze: they have passed for the timer, too. And
// on a host whose clock does not go on from the source's, the remaining time counts.
TEST_F(TimerFdTest, TheyFollowTheClockOfTheirProcess) {
  Source source([&] {
    put(must(::timerfd_create(CLOCK_MONOTONIC, 0)), 3);
    set_timer(3, 0, 1000, 0);
  });
  source.freeze();
  const auto message = source.capture();
  ASSERT_TRUE(message.ok());
  const std::pair<Nanos, time_t> expected[] = {
      {std::chrono::seconds(100), 900}, {std::chrono::seconds(-100), 1000}, {std::chrono::hours(48), 1000}};
  for (const auto& [offset, seconds] : expected) {
    Destination destination(offset);
    ASSERT_EQ(text(destination.finish(message.value())), "");
    itimerspec left{};
    ASSERT_EQ(::timerfd_gettime(destination.fd(3).get(), &left), 0);
    EXPECT_NEAR(static_cast<double>(left.it_value.tv_sec), static_cast<double>(seconds), 5.0);
  }
}

TEST_F(TimerFdTest, UnreadExpirations) {
  Source source([&] {
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 3);
    const itimerspec once{{0, 0}, {0, 1}};
    must(::timerfd_settime(3, 0, &once, nullptr));
    // A period so long that exactly one expiration is there.
    put(must(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 4);
    const itimerspec periodic{{1000, 0}, {0, 1}};
    must(::timerfd_settime(4, 0, &periodic, nullptr));
    for (const int fd : {3, 4}) {
      fd_set set;
      FD_ZERO(&set);
      FD_SET(fd, &set);
      must(::select(fd + 1, &set, nullptr, nullptr, nullptr));
    }
  });
  const auto destination = expect_round_trip(source);
  for (const int fd : {3, 4}) {
    uint64_t ticks = 0;
    EXPECT_EQ(::read(destination->fd(fd).get(), &ticks, sizeof ticks), 8) << fd;
    EXPECT_EQ(ticks, 1U) << fd;
  }
}

}  // namespace
}  // namespace godwit::state
