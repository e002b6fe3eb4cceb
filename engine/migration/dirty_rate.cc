#include "engine/migration/dirty_rate.h"

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

constexpr Nanos kSample = std::chrono::seconds(1);
constexpr int kLookMillis = 50;

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
          ErrorKind::kRefused, "measure the dirty rate", fmt::format("pid {}", process.pid()),
          fmt::format("its fd {} is a userfaultfd: the kernel gives an area to one of them only", fd));
  }
  return {};
}

class Measurement {
 public:
  Measurement(const tracee::Process& process, Control& control)
      : process_(process), control_(control), interrupted_(InterruptedCalls::create(process)) {}
  ~Measurement() {
    if (tracker_) tracker_->release();
  }
  Measurement(const Measurement&) = delete;
  Measurement& operator=(const Measurement&) = delete;

  Status arm(TrackerKind kind) {
    tracker_ = TRY(arm_tracker(process_, kind, interrupted_));
    return {};
  }

  /// Pages written since the last one; at first: all that hold something.
  Result<DirtySample> sample() {
    TRY(follow());
    DirtySample sample;
    const Nanos now = monotonic_now();
    for (const Vma& vma : layout_) {
      const bool left_out =
          std::find(untrackable_.begin(), untrackable_.end(), vma.range) != untrackable_.end();
      if (counted(vma) && !left_out) sample.pages += TRY(collect(vma));
    }
    sample.interval = now - last_;
    last_ = now;
    return sample;
  }

  Status wait(Nanos time) {
    const Nanos end = monotonic_now() + time;
    pollfd exited{process_.pidfd().get(), POLLIN, 0};
    for (Nanos now = monotonic_now(); now < end; now = monotonic_now()) {
      TRY(control_.check());
      const auto left = static_cast<int>((end - now).count() / 1'000'000) + 1;
      if (::poll(&exited, 1, std::min(left, kLookMillis)) > 0)
        return fail(ErrorKind::kTargetGone, "measure the dirty rate", fmt::format("pid {}", process_.pid()),
                    "the process ended by itself");
    }
    return {};
  }

 private:
  /// What is new is tracked from now on; its pages count as written.
  Status follow() {
    Layout layout = TRY(process_.layout());
    if (layout == layout_ && !again_) return {};
    const Nanos begin = monotonic_now();
    auto still = tracee::Frozen::freeze(process_);
    if (!still.ok() && still.error().kind == ErrorKind::kRetry) return {};  // in the next sample
    if (!still.ok()) return still.take_error();
    TRY(interrupted_.look(*still, begin));
    layout_ = TRY(process_.layout());
    std::vector<AddressRange> areas;
    for (const Vma& vma : layout_) {
      if (counted(vma)) areas.push_back(vma.range);
    }
    untrackable_ = TRY(tracker_->track(areas));
    again_ = false;
    return still->finish();
  }

  Result<uint64_t> collect(const Vma& vma) {
    const auto runs = tracker_->collect(vma.range);
    if (!runs.ok() && runs.error().kind == ErrorKind::kRetry) {
      again_ = true;
      return uint64_t{0};
    }
    if (!runs.ok()) return runs.error();
    uint64_t pages = 0;
    for (const PageRun& run : runs.value()) {
      if (is_own(vma, run)) pages += run.range.pages();
    }
    return pages;
  }

  const tracee::Process& process_;
  Control& control_;
  InterruptedCalls interrupted_;
  std::unique_ptr<DirtyTracker> tracker_;
  Layout layout_;
  std::vector<AddressRange> untrackable_;
  bool again_ = false;
  Nanos last_{};
};

}  // namespace

double DirtyRate::pages_per_second() const {
  double pages = 0;
  Nanos time{};
  for (const DirtySample& sample : samples) {
    pages += static_cast<double>(sample.pages);
    time += sample.interval;
  }
  return time > Nanos{} ? pages / to_seconds(time) : 0;
}

double DirtyRate::most() const {
  double most = 0;
  for (const DirtySample& sample : samples) {
    const double seconds = to_seconds(sample.interval);
    most = std::max(most, static_cast<double>(sample.pages) / seconds);
  }
  return most;
}

Result<DirtyRate> measure_dirty_rate(const DirtyRateOptions& options) {
  const TrackerKind kind = TRY(choose_tracker(options.tracker));
  Guardian guardian = TRY(Guardian::start(options.pid, "", false));
  const auto process = TRY(tracee::Process::open(options.pid));
  Control control(options.pid, Limits{}, std::nullopt, options.cancelled);
  control.publish([](Statistics& s) { s.state = JobState::kMeasuring; });
  const auto server = TRY(ControlServer::start(control, job_path(options.pid)));
  TRY(refuse_userfaultfd(process));
  DirtyRate rate;
  rate.pid = options.pid;
  rate.tracker = kind;
  Measurement measurement(process, control);
  guardian.touching();
  TRY(measurement.arm(kind));
  rate.populated = TRY(measurement.sample()).pages;
  for (unsigned i = 0; i < options.seconds; ++i) {
    TRY(measurement.wait(kSample));
    rate.samples.push_back(TRY(measurement.sample()));
  }
  return rate;
}

}  // namespace godwit::migration
