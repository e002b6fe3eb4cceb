// Iterative pre-copy on the source: one process, one stream, until it is frozen and everything is sent. Knows
// nothing of the handover, so that a checkpoint is the same pipeline with a file behind it.
//
//   arm       the tracker sees writes from here on        INVARIANT: what is written after it is collected
//   later describe  layout, objects, rooms as they are now      the destination builds its shell from it
//   round 0   every page that holds data
//   round n   what was written since, and layout changes  INVARIANT: held by the peer = sent, minus written
//   since freeze    capture all rooms, survey, last pages       INVARIANT: the peer holds exactly the frozen
//   process
//
// One thread (it becomes the tracer). Whatever fails, thaw() and disarm() leave the process as it was.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "ebpf/open_files.h"
#include "engine/migration/control.h"
#include "engine/migration/convergence.h"
#include "engine/migration/interrupted_calls.h"
#include "engine/migration/layout_watch.h"
#include "engine/migration/memory_sender.h"
#include "engine/migration/object_sender.h"
#include "engine/migration/report.h"
#include "engine/migration/throttle.h"
#include "engine/migration/tracker_kind.h"
#include "engine/model/dirty_tracker.h"
#include "engine/state/context.h"
#include "engine/tracee/frozen.h"
#include "engine/tracee/memory.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

struct PrecopyOptions {
  size_t cache_bytes = 64_MiB;
  TrackerKind tracker = TrackerKind::kAuto;
  Compression compress = Compression::kNone;
  std::function<bool(size_t channel)> is_peer_behind;  ///< none for a file
  OnProgress progress;
  Policy policy = decide;
  bool verify = false;                ///< hashes of all pages follow the last of them
  std::function<Status()> on_frozen;  ///< in the freeze, before anything is captured
  std::function<Status()> on_switch;  ///< the freeze to come is one to post-copy; none: there is no such
};

class Precopy {
 public:
  /// Waits until the peer has installed everything sent so far; nothing for a file.
  using Barrier = std::function<Status(uint32_t round)>;

  /// `writers`: one a channel, the first is the control channel's. All borrowed. `control`: the limits as
  /// they are at each decision, and what a person wishes.
  static Result<std::unique_ptr<Precopy>> create(const tracee::Process& process, const state::Intent& intent,
                                                 std::vector<wire::RecordWriter*> writers, Control& control,
                                                 PrecopyOptions options, Barrier barrier);
  ~Precopy();

  Status arm();
  Status describe();
  /// Rounds until the next one no longer pays. Errors: NotConverged at the limits, Cancelled, TargetGone, the
  /// sinks'.
  Status rounds();
  /// Freezes, captures and sends the rest, at real-time priority; on success the process stays frozen. At an
  /// instant that cannot be captured (a file lock is held, a connection is not accepted yet) the process runs
  /// on for another round: `before` is called before each attempt, `undo`, which must thaw, after one that
  /// failed so.
  Status freeze_at_good_instant(const std::function<Status()>& before, const std::function<Status()>& undo);

  /// Undoes what the captures changed and lets the process run. Safe in every state.
  Status thaw();
  /// The end of the original: it is killed and reaped, and nothing of it undone.
  Status kill();
  /// For the one end at which nothing may be undone (in doubt): the process stays stopped as it is.
  void forget_undo();
  /// Drops the tracker. After it no trace of us is left in the process.
  void disarm();

  /// After a freeze that is a switch: what the peer lacks; else nothing. Ascending, disjoint.
  [[nodiscard]] const std::vector<AddressRange>& missing() const { return missing_; }
  /// Of it, what was written in the round before, too.
  [[nodiscard]] std::vector<AddressRange> hot() const;
  [[nodiscard]] const tracee::Memory& memory() const { return *memory_; }

  [[nodiscard]] tracee::Frozen& frozen() { return *frozen_; }
  [[nodiscard]] Report& report() { return report_; }
  [[nodiscard]] Nanos frozen_at() const { return frozen_at_; }

 private:
  Precopy(const tracee::Process& process, const state::Intent& intent,
          std::vector<wire::RecordWriter*> writers, Control& control, PrecopyOptions options, Barrier barrier)
      : process_(process),
        intent_(intent),
        writers_(std::move(writers)),
        control_(control),
        options_(std::move(options)),
        barrier_(std::move(barrier)),
        layout_watch_(process) {}
  /// `whole`: looked for everywhere, whatever the log heard.
  Status round(uint32_t number, bool whole);
  Result<PageRuns> collect(bool whole, RoundStats& stats);
  Status one_more_round();
  Status freeze();
  Status await_writers(const PageRuns& collected);
  Status look_in_detail();
  uint32_t note_gain(Nanos downtime);
  void lose_log(std::string why);
  Status send_layout(Layout layout, uint32_t round, bool frozen);
  Status announce_layout(Layout layout, uint32_t round, bool frozen);
  Status listen();
  Status ask_log();
  Status track();
  void ask_for_timers(const std::vector<state::OpenFile>& files);
  Status look_for_objects();
  Status pass_objects(bool frozen);
  Status announce_objects(const std::vector<state::OpenFile>& files, Layout& layout, bool frozen);
  Status capture(std::vector<wire::RoomState>& states);
  Status find_needed(const std::vector<wire::RoomState>& states);
  Status send_states(const std::vector<wire::RoomState>& states);
  Status last_pass();
  Status send_last(const MemorySender::LastPass& last);
  PageRuns withhold(const MemorySender::LastPass& last);
  void add_unsent(PageSet& missing, PageSet& pushed) const;
  PageRuns keep_back(const PageRuns& written);
  Status tell_missing();
  Status check_wishes();
  [[nodiscard]] Status check_target() const;
  Status prepare_switch();
  Status turn(Decision decision, const Situation& now, const Limits& limits);
  void throttle(ThrottleLevel level);
  void round_begins(const RoundStats& stats);
  void round_ends(const RoundStats& stats, const Forecast& ahead);
  void tell(const char* phase, const Forecast& forecast);
  [[nodiscard]] uint64_t wire_bytes() const;

  const tracee::Process& process_;
  const state::Intent& intent_;
  std::vector<wire::RecordWriter*> writers_;
  Control& control_;
  PrecopyOptions options_;
  Barrier barrier_;

  std::vector<std::unique_ptr<BatchSender>> senders_;  ///< one a writer
  std::optional<tracee::Memory> memory_;
  TrackerKind kind_ = TrackerKind::kAuto;  ///< of the marks
  std::unique_ptr<DirtyTracker> tracker_;
  std::unique_ptr<WriteLog> log_;  ///< none where the kernel does not let us
  WrittenSince written_;           ///< what it told in the freeze
  LayoutWatch layout_watch_;
  std::unique_ptr<MemorySender> sender_;
  std::optional<ObjectSender> objects_;
  Layout layout_;  ///< as last sent, detailed
  std::optional<tracee::Frozen> frozen_;
  std::optional<ebpf::OpenFiles> open_files_;  ///< the kernel's notes on those of the process
  std::optional<state::CaptureContext> captured_;
  std::optional<InterruptedCalls> interrupted_;
  std::unique_ptr<Throttle> throttle_;  ///< once it was needed
  ThrottleLevel level_;
  std::optional<Throttle::Hold> hold_;  ///< as long as it is frozen
  Nanos started_{}, collected_at_{}, frozen_at_{};
  uint32_t next_round_ = 0;
  std::optional<Nanos> least_downtime_;  ///< that any round foretold
  uint32_t without_gain_ = 0;            ///< rounds since
  bool switch_ = false;                  ///< to post-copy, at the freeze
  std::vector<AddressRange> needed_;     ///< then: what has to be there nevertheless
  std::vector<AddressRange> missing_;
  PageSet unsent_;         ///< collected in the bulk round, and kept back
  PageRuns written_last_;  ///< in the last round, unless that was the first
  Report report_;
};

}  // namespace godwit::migration
