// timerfd: when it expires next, its interval, and the expirations not read yet. A timer keeps its instant on
// the process's own clock, so that the time the process stood still counts; where the destination's clock
// does not go on from the source's, it keeps its remaining time instead.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "ebpf/open_files.h"
#include "engine/base/files.h"
#include "engine/base/log.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "timerfd";
constexpr const char* kSubject = "a timerfd of the process";
constexpr int64_t kSecond = 1'000'000'000;
/// A clock that is further off than a move can take is another clock.
constexpr int64_t kContinuous = 3600 * kSecond;
constexpr int64_t kPatience = 200'000, kPeriodicPatience = 10'000'000;  ///< ns, for an interrupt
constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);             // linux/timerfd.h: TFD_IOC_SET_TICKS

bool claims(const OpenFile& file) {
  return file.link == "anon_inode:[timerfd]";
}

Status check(const CheckContext&, const OpenFile&, Findings&) {
  return {};
}

int64_t to_ns(const timespec& t) {
  return t.tv_sec * kSecond + t.tv_nsec;
}
timespec to_timespec(int64_t ns) {
  return {ns / kSecond, ns % kSecond};
}

/// What the time namespace of a process adds to a clock. The file has one line a clock: name, seconds,
/// nanoseconds.
int64_t namespace_offset(const std::string& proc_directory, clockid_t clock) {
  const bool boot = clock == CLOCK_BOOTTIME || clock == CLOCK_BOOTTIME_ALARM;
  if (!boot && clock != CLOCK_MONOTONIC) return 0;
  const auto text = read_file(proc_directory + "/timens_offsets");
  if (!text.ok()) return 0;  // a kernel without time namespaces
  const auto line = field(text.value(), boot ? "boottime" : "monotonic");
  long long seconds = 0;
  long long nanoseconds = 0;
  if (!line || std::sscanf(std::string(*line).c_str(), "%lld %lld", &seconds, &nanoseconds) != 2) return 0;
  return seconds * kSecond + nanoseconds;
}

/// The reading of `clock` that the process with this /proc directory would get now.
int64_t process_clock(const std::string& proc_directory, clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return to_ns(now) - namespace_offset("/proc/self", clock) + namespace_offset(proc_directory, clock);
}

struct Reading {
  uint64_t ticks = 0;
  itimerspec timer{};
};

// KERNEL: a periodic timer that expired is only started again when it is looked at: timerfd_gettime does so,
// counting the expirations. fdinfo read before and after tells whether one came in between.
Result<Reading> read_timer(const Fd& copy, const OpenFile& file) {
  const std::string info = fmt::format("/proc/thread-self/fdinfo/{}", copy.get());
  const auto ticks = [&]() -> Result<uint64_t> {
    const std::string text = TRY(read_file(info));
    return parse_number(field(text, "ticks:").value_or("0")).value_or(0);
  };
  Reading reading;
  if (::timerfd_gettime(copy.get(), &reading.timer) != 0)
    return fail_errno("timerfd_gettime", file.subject());
  constexpr int kAttempts =
      100;  // a timer of a few microseconds cannot be read consistently; any reading serves
  for (int i = 0; i < kAttempts; ++i) {
    reading.ticks = TRY(ticks());
    if (::timerfd_gettime(copy.get(), &reading.timer) != 0)
      return fail_errno("timerfd_gettime", file.subject());
    if (TRY(ticks()) == reading.ticks) break;
  }
  return reading;
}

/// What the kernel itself has noted of the timer; nothing where it cannot be asked.
std::optional<ebpf::OpenFileFacts::Timer> ask_kernel(CaptureContext& ctx, const OpenFile& file) {
  if (ctx.open_files == nullptr) return std::nullopt;
  if (!ctx.file_facts) {
    auto facts = ctx.open_files->read();
    if (!facts.ok()) {
      log_debug("timerfds are waited for: {}", facts.error().message());
      ctx.open_files = nullptr;
      return std::nullopt;
    }
    ctx.file_facts = std::make_shared<const std::vector<ebpf::OpenFileFacts>>(facts.take());
  }
  const ebpf::OpenFileFacts* found = ebpf::find_facts(*ctx.file_facts, file.number());
  return found == nullptr ? std::nullopt : found->timer;
}

/// KERNEL: a timer that has come due reads as one that is not set, until the interrupt on its processor has
/// been served: 3 us, 50 under load. The kernel's own notes tell the two apart; where they cannot be had,
/// only its expiration does, so we wait for that, longer if there is an interval, for hardly a program sets
/// that for a timer that is not to run.
Result<Reading> read_settled(CaptureContext& ctx, const Fd& copy, const OpenFile& file) {
  Reading reading = TRY(read_timer(copy, file));
  const int64_t interval = to_ns(reading.timer.it_interval);
  if (to_ns(reading.timer.it_value) == 0 && reading.ticks == 0) {
    const auto noted = ask_kernel(ctx, file);
    // Nobody sets it while the process is frozen: what was idle when they were asked still is.
    if (noted && noted->idle()) return reading;
    pollfd expiration{copy.get(), POLLIN, 0};
    const timespec patience = to_timespec(noted || interval != 0 ? kPeriodicPatience : kPatience);
    if (::ppoll(&expiration, 1, &patience, nullptr) == 1)
      reading = TRY(read_timer(copy, file));
    else if (noted)
      reading.timer.it_value = to_timespec(1);  // its processor is away; on the destination it is due at once
  }
  // A periodic one that has expired goes on; here it is due again.
  if (to_ns(reading.timer.it_value) == 0 && reading.ticks != 0 && interval != 0)
    reading.timer.it_value = to_timespec(1);
  return reading;
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  const auto clock = parse_number(field(file.fdinfo, "clockid:").value_or(""));
  if (!clock)
    return fail(ErrorKind::kUnsupported, "read the clock of a timerfd", file.subject(),
                "its fdinfo does not tell it");
  const Fd copy = TRY(duplicate(ctx, file));
  const Reading reading = TRY(ctx.frozen != nullptr ? read_settled(ctx, copy, file) : read_timer(copy, file));
  wire::TimerFdState state;
  state.set_clock(static_cast<int>(*clock));
  state.set_settime_flags(
      static_cast<uint32_t>(parse_number(field(file.fdinfo, "settime flags:").value_or("0"), 8).value_or(0)));
  state.set_ticks(reading.ticks);
  state.set_remaining_ns(static_cast<uint64_t>(to_ns(reading.timer.it_value)));
  state.set_interval_ns(static_cast<uint64_t>(to_ns(reading.timer.it_interval)));
  state.set_clock_now_ns(process_clock(ctx.process.path(""), static_cast<clockid_t>(*clock)));
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::TimerFdState>(kRoom, message);
  return state.ok() ? fmt::format("{}", state.value().clock()) : "damaged";
}

Result<int> prepare(BuildContext&, std::string_view message) {
  const auto state = TRY(parse_message<wire::TimerFdState>(kRoom, message));
  const int fd = ::timerfd_create(state.clock(), TFD_CLOEXEC | TFD_NONBLOCK);
  if (fd < 0) return fail_errno(fmt::format("timerfd_create({})", state.clock()), kSubject);
  return fd;
}

/// How long it is to the next expiration now; negative when it should have been.
int64_t remaining_now(const BuildContext& ctx, const wire::TimerFdState& state) {
  const auto remaining = static_cast<int64_t>(state.remaining_ns());
  const int64_t now = process_clock(fmt::format("/proc/{}", ctx.shell.pid()), state.clock());
  const int64_t passed = now - state.clock_now_ns();
  if (passed < 0 || passed > kContinuous) return remaining;
  return remaining - passed;
}

/// ORDER: setting the timer clears the ticks.
Status set_ticks(int fd, uint64_t ticks) {
  if (ticks == 0) return {};
  if (::ioctl(fd, kSetTicks, &ticks) == 0) return {};
  Error error = fail_errno("ioctl(TFD_IOC_SET_TICKS)", kSubject);
  error.remedy = "this host's kernel needs CONFIG_CHECKPOINT_RESTORE";
  return error;
}

/// When it expires next, for timerfd_settime with `flags`.
timespec next_expiration(const BuildContext& ctx, const wire::TimerFdState& state, int& flags) {
  const bool realtime = state.clock() == CLOCK_REALTIME || state.clock() == CLOCK_REALTIME_ALARM;
  flags = TFD_TIMER_ABSTIME;
  if (realtime && (state.settime_flags() & TFD_TIMER_ABSTIME) != 0) {
    // An instant of the wall clock stays that instant, whatever that clock says here.
    flags |= static_cast<int>(state.settime_flags()) & TFD_TIMER_CANCEL_ON_SET;
    return to_timespec(state.clock_now_ns() + static_cast<int64_t>(state.remaining_ns()));
  }
  const int64_t remaining = remaining_now(ctx, state);
  if (realtime) {
    // KERNEL: a relative timer of the wall clock runs on the monotonic one: jumps do not move it.
    flags = 0;
    return to_timespec(std::max<int64_t>(remaining, 1));
  }
  // An instant in the past is right: the kernel counts every interval missed since and keeps the phase.
  timespec now{};
  ::clock_gettime(state.clock(), &now);
  return to_timespec(std::max<int64_t>(to_ns(now) + remaining, 1));
}

Status finish(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::TimerFdState>(kRoom, message));
  itimerspec timer{to_timespec(static_cast<int64_t>(state.interval_ns())), {0, 0}};
  int flags = 0;
  if (state.remaining_ns() != 0) timer.it_value = next_expiration(ctx, state, flags);
  if (::timerfd_settime(fd, flags, &timer, nullptr) != 0) return fail_errno("timerfd_settime", kSubject);
  return set_ticks(fd, state.ticks());
}

}  // namespace

DescriptorRoom timerfd_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

}  // namespace godwit::state
