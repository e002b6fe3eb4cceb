#include "engine/migration/write_watch.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>

#include <algorithm>

#include "engine/base/files.h"
#include "engine/migration/arm_tracker.h"
#include "engine/migration/carried.h"
#include "engine/migration/control_server.h"
#include "engine/migration/guardian.h"

namespace godwit::migration {
namespace {

bool counted(const Vma& vma) {
  if (vma.kind == VmaKind::kFileShared) return (vma.prot & PROT_WRITE) != 0;
  return vma.kind == VmaKind::kAnonymous || vma.kind == VmaKind::kFilePrivate;
}

/// SAFETY: if this engine is killed, its guardian closes every userfaultfd in the process as one of ours.
Status refuse_userfaultfd(const tracee::Process& process) {
  for (const int fd : TRY(process.fds())) {
    const auto link = read_link(process.path(fmt::format("fd/{}", fd)));
    if (link.ok() && link.value() == "anon_inode:[userfaultfd]")
      return fail(
          ErrorKind::kRefused, "watch the writes", fmt::format("pid {}", process.pid()),
          fmt::format("its fd {} is a userfaultfd: the kernel gives an area to one of them only", fd));
  }
  return {};
}

}  // namespace

struct WriteWatch::Parts {
  Parts(Guardian of, tracee::Process target, TrackerKind chosen, const std::atomic<bool>* cancelled)
      : guardian(std::move(of)),
        process(std::move(target)),
        kind(chosen),
        control(process.pid(), Limits{}, std::nullopt, cancelled),
        interrupted(InterruptedCalls::create(process)) {}
  ~Parts() {
    if (tracker) tracker->release();
  }
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  Status follow();
  Status collect(const Vma& vma, WrittenPages& written);

  Guardian guardian;
  tracee::Process process;
  TrackerKind kind;
  Control control;
  std::unique_ptr<ControlServer> server;  ///< one engine at a time
  InterruptedCalls interrupted;
  std::unique_ptr<DirtyTracker> tracker;
  Layout layout;
  Layout watched;  ///< of it, what the tracker sees
  bool again = false;
  Nanos last{};
};

/// What is new is tracked from now on; its pages count as written.
Status WriteWatch::Parts::follow() {
  Layout now = TRY(process.layout());
  if (now == layout && !again) return {};
  const Nanos begin = monotonic_now();
  auto still = tracee::Frozen::freeze(process);
  if (!still.ok() && still.error().kind == ErrorKind::kRetry) return {};  // at the next look
  if (!still.ok()) return still.take_error();
  TRY(interrupted.look(*still, begin));
  layout = TRY(process.layout());
  std::vector<AddressRange> areas;
  for (const Vma& vma : layout) {
    if (counted(vma)) areas.push_back(vma.range);
  }
  const auto untrackable = TRY(tracker->track(areas));
  watched = layout;
  std::erase_if(watched, [&](const Vma& vma) {
    return !counted(vma) || std::find(untrackable.begin(), untrackable.end(), vma.range) != untrackable.end();
  });
  again = false;
  return still->finish();
}

Status WriteWatch::Parts::collect(const Vma& vma, WrittenPages& written) {
  const auto runs = tracker->collect(vma.range);
  if (!runs.ok() && runs.error().kind == ErrorKind::kRetry) {
    again = true;
    return {};
  }
  if (!runs.ok()) return runs.error();
  for (const PageRun& run : runs.value()) {
    if (!is_own(vma, run)) continue;
    written.spans.push_back({run.range.start.value(), run.range.end.value()});
    written.pages += run.range.pages();
  }
  return {};
}

WriteWatch::WriteWatch(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
WriteWatch::~WriteWatch() = default;

Result<std::unique_ptr<WriteWatch>> WriteWatch::begin(pid_t pid, const WatchOptions& options) {
  const TrackerKind kind = TRY(choose_tracker(options.tracker));
  // ORDER: a guardian is forked; the server has a thread.
  Guardian guardian = TRY(Guardian::start(pid, {}));
  auto parts =
      std::make_unique<Parts>(std::move(guardian), TRY(tracee::Process::open(pid)), kind, options.cancelled);
  parts->control.publish([](Statistics& s) { s.state = JobState::kMeasuring; });
  parts->server = TRY(ControlServer::start(parts->control, job_path(pid)));
  TRY(refuse_userfaultfd(parts->process));
  parts->guardian.touching();
  parts->tracker = TRY(arm_tracker(parts->process, kind, parts->interrupted));
  return std::unique_ptr<WriteWatch>(new WriteWatch(std::move(parts)));
}

TrackerKind WriteWatch::tracker() const {
  return parts_->kind;
}

Result<WrittenPages> WriteWatch::written() {
  TRY(parts_->follow());
  WrittenPages written;
  const Nanos now = monotonic_now();
  for (const Vma& vma : parts_->watched) TRY(parts_->collect(vma, written));
  written.interval = now - parts_->last;
  parts_->last = now;
  return written;
}

Status WriteWatch::wait(Nanos time) {
  constexpr Nanos kLook = std::chrono::milliseconds(50);
  const Nanos end = monotonic_now() + time;
  pollfd exited{parts_->process.pidfd().get(), POLLIN, 0};
  for (Nanos now = monotonic_now(); now < end; now = monotonic_now()) {
    TRY(parts_->control.check());
    const timespec left = to_timespec(std::min(end - now, kLook));
    if (::ppoll(&exited, 1, &left, nullptr) > 0)
      return fail(ErrorKind::kTargetGone, "watch the writes", fmt::format("pid {}", parts_->process.pid()),
                  "the process ended by itself");
  }
  return {};
}

}  // namespace godwit::migration
