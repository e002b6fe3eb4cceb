// Room "timers": the three interval timers and POSIX timers with their ids. What is carried is the time that
// remains.
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <array>
#include <optional>

#include "engine/base/files.h"
#include "engine/base/kernel_features.h"
#include "engine/base/missing_uapi.h"
#include "engine/state/process_rooms.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {
namespace {

using tracee::Batch;
constexpr std::string_view kName = "timers";
constexpr uint32_t kNotifySignal = 0, kNotifyNone = 1, kNotifyThreadId = 4;  // SIGEV_*

// ---- /proc/PID/timers
// --------------------------------------------------------------------------------------------

/// "notify: signal/tid.4711", "none/pid.12".
std::optional<uint32_t> parse_notify(std::string_view text) {
  if (text.starts_with("signal/tid.")) return kNotifyThreadId;
  if (text.starts_with("signal/")) return kNotifySignal;
  if (text.starts_with("none/")) return kNotifyNone;
  return std::nullopt;
}

Result<wire::PosixTimer> parse_timer(const tracee::Process& process, std::string_view block) {
  wire::PosixTimer timer;
  const auto id = parse_number(field(block, "ID:").value_or(""));
  const auto signal = split(field(block, "signal:").value_or(""), '/');
  const auto notify_text = field(block, "notify:").value_or("");
  const auto notify = parse_notify(notify_text);
  const auto clock = field(block, "ClockID:").value_or("");
  if (!id || signal.size() != 2 || !notify || clock.empty())
    return fail(ErrorKind::kUnsupported, "read /proc/PID/timers", std::string(block),
                "its format is not known");
  timer.set_id(static_cast<int>(*id));
  timer.set_signal(static_cast<uint32_t>(parse_number(signal[0]).value_or(0)));
  timer.set_value(parse_number(signal[1], 16).value_or(0));
  timer.set_notify(*notify);
  const bool negative = clock.starts_with('-');
  const auto number = static_cast<int>(parse_number(clock.substr(negative ? 1 : 0)).value_or(0));
  timer.set_clock(negative ? -number : number);
  if (*notify == kNotifyThreadId) {
    const auto tid =
        static_cast<pid_t>(parse_number(notify_text.substr(notify_text.find('.') + 1)).value_or(0));
    timer.set_tid(TRY(inner_tid(process, tid)));
  }
  return timer;
}

Result<std::vector<wire::PosixTimer>> read_timers(const tracee::Process& process) {
  const std::string text = TRY(read_file(process.path("timers")));
  std::vector<wire::PosixTimer> timers;
  size_t at = text.find("ID:");
  while (at != std::string::npos) {
    const size_t next = text.find("\nID:", at);
    const std::string_view block =
        std::string_view(text).substr(at, next == std::string::npos ? next : next + 1 - at);
    timers.push_back(TRY(parse_timer(process, block)));
    at = next == std::string::npos ? next : next + 1;
  }
  return timers;
}

// ---- doors
// -------------------------------------------------------------------------------------------------------

Status check(const CheckContext& context, Findings& findings) {
  if (kernel_features().timer_restore_ids) return {};
  if (TRY(read_timers(context.process)).empty()) return {};
  findings.push_back({std::string(kName), "POSIX timers", "the process has POSIX timers",
                      "this kernel cannot give a timer its old id (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15)",
                      "use a newer kernel, or a program without timer_create", true});
  return {};
}

Result<std::string> capture(CaptureContext& context) {
  wire::TimersState state;
  const auto timers = TRY(read_timers(context.process));
  Batch batch;
  std::array<tracee::DataRef, 3> intervals;
  for (const int which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    intervals[static_cast<size_t>(which)] = batch.reserve(sizeof(itimerval));
    batch.call(SYS_getitimer, {which, intervals[static_cast<size_t>(which)]}, "getitimer");
  }
  std::vector<tracee::DataRef> settings;
  for (const auto& timer : timers) {
    settings.push_back(batch.reserve(sizeof(itimerspec)));
    batch.call(SYS_timer_gettime, {timer.id(), settings.back()},
               fmt::format("timer_gettime of timer {}", timer.id()));
  }
  TRY(context.runner->run(context.pid(), batch));
  for (const auto& at : intervals) state.add_interval_timers(bytes_of(batch.value<itimerval>(at)));
  for (size_t i = 0; i < timers.size(); ++i) {
    wire::PosixTimer& timer = *state.add_timers();
    timer = timers[i];
    timer.set_setting(bytes_of(batch.value<itimerspec>(settings[i])));
  }
  return state.SerializeAsString();
}

Status prepare(BuildContext&, std::string_view) {
  return {};
}

/// The kernel's struct sigevent: value, signal, notify, tid, padded to 64 bytes.
struct KernelEvent {
  uint64_t value;
  int32_t signal, notify, tid;
  int32_t pad[11];
};
static_assert(sizeof(KernelEvent) == 64);

void create_timers(Batch& batch, const wire::TimersState& state) {
  batch.call(SYS_prctl, {uapi::kPrTimerCreateRestoreIds, 1, 0, 0, 0}, "prctl(PR_TIMER_CREATE_RESTORE_IDS)");
  for (const auto& timer : state.timers()) {
    const KernelEvent event{timer.value(),
                            static_cast<int32_t>(timer.signal()),
                            static_cast<int32_t>(timer.notify()),
                            timer.tid(),
                            {}};
    batch.call(SYS_timer_create, {timer.clock(), batch.put_value(event), batch.put_value(timer.id())},
               fmt::format("timer_create with id {}", timer.id()));
  }
  batch.call(SYS_prctl, {uapi::kPrTimerCreateRestoreIds, 0, 0, 0, 0}, "prctl(PR_TIMER_CREATE_RESTORE_IDS)");
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::TimersState>(kName, message));
  if (state.interval_timers_size() != 3)
    return fail(ErrorKind::kCorrupt, "set interval timers", std::string(kName), "there are three");
  Batch batch;
  for (const int which : {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF}) {
    const auto value = TRY(value_of<itimerval>(kName, state.interval_timers(which)));
    if (value.it_value.tv_sec != 0 || value.it_value.tv_usec != 0)
      batch.call(SYS_setitimer, {which, batch.put_value(value), 0}, "setitimer");
  }
  if (state.timers_size() > 0) create_timers(batch, state);
  for (const auto& timer : state.timers()) {
    const auto setting = TRY(value_of<itimerspec>(kName, timer.setting()));
    if (setting.it_value.tv_sec != 0 || setting.it_value.tv_nsec != 0)
      batch.call(SYS_timer_settime, {timer.id(), 0, batch.put_value(setting), 0},
                 fmt::format("timer_settime of timer {}", timer.id()));
  }
  return batch.empty() ? Status{} : context.run(batch);
}

}  // namespace

/// After the threads are there: a timer may notify one of them.
const Room kTimersRoom{kName, false, check, capture, prepare, finish, true};

}  // namespace godwit::state
