#include "engine/migration/precopy.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "ebpf/write_log.h"
#include "engine/base/fault_point.h"
#include "engine/base/log.h"
#include "engine/base/realtime.h"
#include "engine/migration/arm_tracker.h"
#include "engine/migration/memory_check.h"
#include "engine/migration/pinned_writes.h"
#include "engine/state/address_space.h"
#include "engine/state/house.h"
#include "engine/tracee/injector.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

/// The fixed part of a freeze, until one was measured: capture, finish and two round trips.
constexpr Nanos kStateCost = std::chrono::milliseconds(3);

wire::LayoutMessage to_message(const Layout& layout, uint32_t round) {
  wire::LayoutMessage message;
  message.set_round(round);
  message.set_full(true);
  for (const Vma& vma : layout) *message.add_areas() = wire::to_message(vma);
  return message;
}

}  // namespace

Result<std::unique_ptr<Precopy>> Precopy::create(const tracee::Process& process, const state::Intent& intent,
                                                 std::vector<wire::RecordWriter*> writers, Control& control,
                                                 PrecopyOptions options, Barrier barrier) {
  std::unique_ptr<Precopy> made(
      new Precopy(process, intent, std::move(writers), control, std::move(options), std::move(barrier)));
  made->started_ = monotonic_now();
  made->report_.pid = process.pid();
  made->kind_ = TRY(choose_tracker(made->options_.tracker));
  made->report_.tracker = to_string(made->kind_);
  made->report_.channels = made->writers_.size();
  made->memory_ = TRY(tracee::Memory::open(process.pid()));
  for (size_t i = 0; i < made->writers_.size(); ++i) {
    const auto& peer = made->options_.is_peer_behind;
    made->senders_.push_back(std::make_unique<BatchSender>(
        *made->writers_[i], made->options_.compress, peer ? [peer, i] { return peer(i); } : PeerIsBehind()));
  }
  made->objects_ = TRY(ObjectSender::create(*made->writers_.front(), *made->senders_.front()));
  return made;
}

Precopy::~Precopy() {
  (void)thaw();
  disarm();
}

// ---- arm
// ---------------------------------------------------------------------------------------------------------

Status Precopy::arm() {
  TRY(fault_point("arm"));
  interrupted_.emplace(InterruptedCalls::create(process_));
  report_.restarts_anew = interrupted_->blind();
  TRY(listen());
  tracker_ = TRY(arm_tracker(process_, kind_, *interrupted_));
  std::vector<std::unique_ptr<Lane>> lanes;
  for (const auto& sender : senders_)
    lanes.push_back(TRY(Lane::create(*sender, options_.cache_bytes / senders_.size())));
  sender_ = std::make_unique<MemorySender>(*memory_, *tracker_, std::move(lanes));
  return {};
}

/// ORDER: before the first freeze: a write fault that is under way now is over then.
Status Precopy::listen() {
  // A fault is heard before our handler answers it, and the write comes after. So what it hears before the
  // mark may be written behind it, and neighbours that the handler opens are written without a fault.
  if (kind_ == TrackerKind::kUffdSync) {
    lose_log("the tracker uffd-sync leaves no complete log of writes");
    return {};
  }
  if (options_.tracker == TrackerKind::kUffd) {
    lose_log("the tracker uffd keeps no log of writes");
    return {};
  }
  auto log = ebpf::FaultLog::create(process_.pid());
  if (!log.ok() && options_.tracker == TrackerKind::kEbpf) return log.take_error();
  if (!log.ok()) {
    lose_log(log.error().message());
    return {};
  }
  log_ = log.take();
  report_.tracker = to_string(TrackerKind::kEbpf);
  return {};
}

void Precopy::disarm() {
  hold_.reset();
  throttle_.reset();
  log_.reset();
  sender_.reset();
  if (tracker_) tracker_->release();
  tracker_.reset();
}

// ---- describe
// ----------------------------------------------------------------------------------------------------

Status Precopy::describe() {
  TRY(fault_point("describe-source"));
  const auto files = TRY(state::read_open_files(process_));
  ask_for_timers(files);
  layout_ = TRY(layout_watch_.in_detail(nullptr));
  TRY(announce_objects(files, layout_, false));
  TRY(writers_.front()->write_message(wire::RecordType::kLayout, to_message(layout_, 0)));
  sender_->follow(layout_);
  TRY(track());
  state::CaptureContext live{
      .process = process_, .memory = *memory_, .intent = intent_, .layout = layout_, .files = files};
  TRY(state::capture_all(live, [&](const wire::RoomState& message) {
    return writers_.front()->write_message(wire::RecordType::kDescription, message);
  }));
  TRY(writers_.front()->flush());
  return barrier_ ? barrier_(~0u) : Status{};
}

/// Loading takes longer than the waits that it spares in a freeze.
void Precopy::ask_for_timers(const std::vector<state::OpenFile>& files) {
  const auto is_timer = [](const state::OpenFile& file) { return file.link == "anon_inode:[timerfd]"; };
  if (std::none_of(files.begin(), files.end(), is_timer)) return;
  auto open_files = ebpf::OpenFiles::create(process_.pid());
  if (open_files.ok())
    open_files_.emplace(open_files.take());
  else
    log_debug("timerfds that are not set are waited for: {}", open_files.error().message());
}

/// A file is opened without a change of the layout. In the freeze, a new one has to be read whole.
Status Precopy::look_for_objects() {
  const auto files = TRY(state::read_open_files(process_));
  return objects_->announce(TRY(state::find_objects(process_, layout_, files)), false);
}

/// What was looked at may not have changed since, see ObjectSender::look().
Status Precopy::pass_objects(bool frozen) {
  const ObjectSender::Pass done = TRY(objects_->pass(frozen));
  report_.object_pages += done.pages;
  if (!frozen) return {};
  report_.objects_read_frozen = done.bytes;
  report_.objects_read_because = objects_->blind();
  return {};
}

/// While the process runs, an area may be gone before its object was looked at, and one that cannot be
/// carried may be there for a moment: they are left out of `layout`. At the freeze there is none of the first
/// kind, and the room of the address space refuses the second.
Status Precopy::announce_objects(const std::vector<state::OpenFile>& files, Layout& layout, bool frozen) {
  std::erase_if(layout, [](const Vma& vma) { return !state::is_movable(vma); });
  TRY(objects_->announce(TRY(state::find_objects(process_, layout, files)), frozen));
  std::erase_if(layout, [&](const Vma& vma) {
    return state::shows_object(vma) && !objects_->knows(state::object_key(vma.device, vma.inode));
  });
  return {};
}

Status Precopy::send_layout(Layout layout, uint32_t round, bool frozen) {
  const bool changed = layout != layout_;
  if (!changed && !sender_->has_lost_some()) return {};
  if (changed) TRY(announce_layout(std::move(layout), round, frozen));
  sender_->follow(layout_);
  // Frozen, nothing is written any more: new areas are only surveyed.
  return frozen ? Status() : track();
}

Status Precopy::announce_layout(Layout layout, uint32_t round, bool frozen) {
  // ORDER: an object before its mappings.
  TRY(announce_objects(TRY(state::read_open_files(process_)), layout, frozen));
  layout_ = std::move(layout);
  TRY(writers_.front()->write_message(wire::RecordType::kLayout, to_message(layout_, round)));
  // The peer remaps on the control channel; pages of other channels must not overtake that, nor in the
  // freeze.
  return barrier_ && writers_.size() > 1 ? barrier_(round) : Status();
}

/// The process stands still meanwhile: at a boundary that is no longer one the kernel would split an area,
/// and the program's next mremap of it would fail.
Status Precopy::track() {
  if (!sender_->has_untracked()) return {};
  const Throttle::Hold hold(throttle_.get());
  const Nanos begin = monotonic_now();
  auto still = tracee::Frozen::freeze(process_);
  if (!still.ok() && still.error().kind == ErrorKind::kRetry) return {};  // in the next round
  if (!still.ok()) return still.take_error();
  TRY(interrupted_->look(*still, begin));
  TRY(sender_->track(TRY(process_.layout())));
  return still->finish();
}

// ---- rounds
// ------------------------------------------------------------------------------------------------------

Status Precopy::rounds() {
  control_.publish([this](Statistics& s) {
    s.state = JobState::kActive;
    s.setup = monotonic_now() - s.started;
    s.cache_bytes = options_.cache_bytes;
  });
  for (;;) {
    TRY(check_wishes());
    if (next_round_ > 0) TRY(look_for_objects());
    TRY(round(next_round_++, false));
    const Limits limits = control_.limits();
    throttle(within(level_, limits.throttle));
    Situation now{.last = report_.rounds.back(),
                  .ahead = forecast(report_.rounds.back(), kStateCost),
                  .elapsed = monotonic_now() - started_,
                  .throttle = level_,
                  .freeze_now = control_.freeze_now(),
                  .switch_now = control_.switch_now()};
    now.rounds_without_gain = note_gain(now.ahead.downtime);
    round_ends(now.last, now.ahead);
    tell("pre-copy", now.ahead);
    const Decision decision = options_.policy(now, limits);
    if (decision == Decision::kSwitch) TRY(prepare_switch());
    if (decision == Decision::kFreeze || decision == Decision::kSwitch) return one_more_round();
    TRY(turn(decision, now, limits));
  }
}

uint32_t Precopy::note_gain(Nanos downtime) {
  const bool gained = !least_downtime_ || downtime + kWorthwhile < *least_downtime_;
  if (gained) least_downtime_ = downtime;
  without_gain_ = gained ? 0 : without_gain_ + 1;
  return without_gain_;
}

/// What follows a round, unless it was the last.
Status Precopy::turn(Decision decision, const Situation& now, const Limits& limits) {
  switch (decision) {
    case Decision::kContinue:
      if (!pays(now)) std::this_thread::sleep_for(kBreather);
      return {};
    case Decision::kThrottle:
      throttle(tighten(level_, limits.throttle));
      return {};
    default:
      return fail(
          ErrorKind::kNotConverged, "converge",
          fmt::format("pid {} after {} rounds: {:.0f} pages/s written, expected downtime {} ms, limit {} ms",
                      process_.pid(), next_round_, now.ahead.dirty_pages_per_second,
                      to_micros(now.ahead.downtime) / 1000, to_micros(limits.downtime) / 1000),
          "raise --downtime-limit, --max-rounds, --timeout or --bandwidth, slow it with --throttle auto, "
          "freeze it all the same with --on-timeout force, or move it when it writes less");
  }
}

void Precopy::throttle(ThrottleLevel level) {
  if (level == level_) return;
  level_ = level;
  tracker_->fault_on_each(level.writers);
  report_.throttle_percent = std::max(report_.throttle_percent, level.cpu_percent);
  control_.publish([&](Statistics& s) { s.throttle = level; });
  if (!throttle_)
    throttle_ = std::make_unique<Throttle>(process_, *interrupted_, [this] { return control_.throttle(); });
  throttle_->set(level);
}

/// The round before a freeze: what is written from its beginning on, the log hears.
Status Precopy::one_more_round() {
  TRY(check_wishes());
  control_.publish([](Statistics& s) { s.state = JobState::kActive; });
  const bool looked = !layout_watch_.knows_details(log_.get());
  if (looked) TRY(look_in_detail());
  // For what was written during that look, and what no guide named, replaced areas above all.
  if (looked || report_.rounds.back().guided) TRY(round(next_round_++, true));
  // ORDER: marked before the collect, so that a write is in the log, or in what the collect finds, or in
  // both.
  if (log_) {
    Status marked = log_->mark();
    if (!marked.ok()) lose_log(marked.error().message());
  }
  TRY(round(next_round_++, true));
  round_ends(report_.rounds.back(), forecast(report_.rounds.back(), kStateCost));
  return log_ ? sender_->rest() : Status{};
}

/// INVARIANT: the log is a guide here, and what it does not name keeps its mark. The round before the freeze
/// is whole, and so the log of the freeze can vouch for what followed.
Result<PageRuns> Precopy::collect(bool whole, RoundStats& stats) {
  const auto heard = log_ ? log_->heard(sender_->worth_guiding()) : std::nullopt;
  stats.guided = heard && !whole;
  return sender_->collect(stats.guided ? &*heard : nullptr);
}

Status Precopy::round(uint32_t number, bool whole) {
  TRY(fault_point("round"));
  RoundStats stats;
  stats.round = number;
  stats.throttle_percent = level_.cpu_percent;
  const uint64_t before = wire_bytes();
  const PageCounts travelled_before = sender_->counts();
  // Not in the bulk round, which follows the description, and not in those that the freeze waits for.
  if (number == 1) TRY(look_in_detail());
  TRY(send_layout(TRY(layout_watch_.look(layout_, log_.get())), number, false));
  const Nanos begin = monotonic_now();
  const PageRuns written = TRY(collect(whole || number == 0, stats));
  const Nanos scanned = monotonic_now();
  TRY(objects_->look());
  TRY(await_writers(written));
  for (const PageRun& run : written) stats.pages += run.range.pages();
  round_begins(stats);
  if (number > 0) written_last_ = written;
  const bool keeps_back = number == 0 && control_.limits().postcopy.after_rounds == 0U;
  TRY(sender_->send(keeps_back ? keep_back(written) : written,
                    number == 0 ? LaneSet::Pass::kBulk : LaneSet::Pass::kRound));
  if (number > 0) {
    for (const PageRun& run : written) unsent_.erase(run.range);
  }
  TRY(pass_objects(false));
  wire::RoundEnd end;
  end.set_round(number);
  end.set_pages_dirty(stats.pages);
  TRY(writers_.front()->write_message(wire::RecordType::kRoundEnd, end));
  for (wire::RecordWriter* writer : writers_) TRY(writer->flush());
  if (barrier_) TRY(barrier_(number));
  stats.wire_bytes = wire_bytes() - before;
  stats.travelled = sender_->counts().since(travelled_before);
  stats.interval = collected_at_ == Nanos{} ? Nanos{} : begin - collected_at_;
  stats.scan = scanned - begin;
  stats.duration = monotonic_now() - begin;
  collected_at_ = begin;
  report_.rounds.push_back(stats);
  return {};
}

/// ORDER: between the collect and the reading.
Status Precopy::await_writers(const PageRuns& collected) {
  const Throttle::Hold hold(throttle_.get());
  Status over = await_pinned_writes(process_, *interrupted_);
  const bool not_now =
      !over.ok() && (over.error().kind == ErrorKind::kRetry || over.error().kind == ErrorKind::kTimeout);
  if (!over.ok() && !not_now) return over;
  if (over.ok() && !TRY(has_unseen_writers(process_))) return {};
  log_debug("round {}: {}", next_round_,
            over.ok() ? "there is a ring, or pinned memory" : over.error().message());
  sender_->distrust(collected);
  objects_->distrust();
  return {};
}

uint64_t Precopy::wire_bytes() const {
  return sender_->wire_bytes();
}

/// Between two rounds. Tracking goes on while they pause.
Status Precopy::check_wishes() {
  TRY(control_.wait_while_paused([this]() -> Status {
    TRY(check_target());
    return barrier_ ? barrier_(next_round_) : Status{};
  }));
  return check_target();
}

Status Precopy::check_target() const {
  if (!process_.pidfd().exited()) return {};
  return fail(ErrorKind::kTargetGone, "migrate", fmt::format("pid {}", process_.pid()),
              "the process ended by itself");
}

void Precopy::round_begins(const RoundStats& stats) {
  control_.publish([&](Statistics& s) {
    s.round = stats.round;
    s.round_pages = stats.pages;
    s.round_ended = false;
    s.round_started = monotonic_now();
    s.round_started_bytes = s.transferred;
    ++s.collects;
    if (stats.round == 0) s.total_pages = stats.pages;
  });
}

void Precopy::round_ends(const RoundStats& stats, const Forecast& ahead) {
  control_.publish([&](Statistics& s) {
    const double seconds = to_seconds(stats.duration);
    s.round_ended = true;
    s.transferred = std::max(s.transferred, wire_bytes());
    s.bytes_per_second = seconds > 0 ? static_cast<double>(stats.wire_bytes) / seconds : 0;
    s.dirty_pages_per_second = ahead.dirty_pages_per_second;
    s.expected_downtime = ahead.downtime;
    s.pages = sender_->counts();
    s.throttle = level_;
  });
}

void Precopy::tell(const char* phase, const Forecast& ahead) {
  if (!options_.progress) return;
  const RoundStats& last = report_.rounds.back();
  const double seconds = to_seconds(last.duration);
  options_.progress({phase, last.round, last.pages, wire_bytes(),
                     seconds > 0 ? static_cast<double>(last.wire_bytes) / seconds : 0,
                     ahead.dirty_pages_per_second, ahead.downtime, level_});
}

// ---- the freeze
// --------------------------------------------------------------------------------------------------

Status Precopy::freeze_at_good_instant(const std::function<Status()>& before,
                                       const std::function<Status()>& undo) {
  constexpr int kAttempts = 200;
  const RealtimeBoost boost;
  for (int attempt = 1;; ++attempt) {
    TRY(before());
    Status frozen = freeze();
    if (frozen.ok() || frozen.error().kind != ErrorKind::kRetry || attempt == kAttempts) return frozen;
    log_debug("bad instant: {}", frozen.error().message());
    ++report_.bad_instants;
    TRY(undo());
    TRY(one_more_round());
  }
}

/// Errors: Retry for a bad instant.
Status Precopy::freeze() {
  TRY(check_wishes());
  control_.publish([](Statistics& s) { s.state = JobState::kDevice; });
  wire::LastRound last;
  last.set_round(next_round_);
  TRY(writers_.front()->write_message(wire::RecordType::kLastRound, last));
  TRY(writers_.front()->flush());
  TRY(fault_point("freeze"));

  report_.downtime = {};
  // ORDER: what the throttle holds, nobody else can freeze.
  hold_.emplace(throttle_.get());
  frozen_at_ = monotonic_now();
  report_.frozen_at = read_clock(CLOCK_REALTIME);
  frozen_.emplace(TRY(tracee::Frozen::freeze(process_)));
  const Nanos stopped = monotonic_now();
  TRY(ask_log());
  const Nanos asked = monotonic_now();
  TRY(fault_point("frozen"));
  TRY(interrupted_->look(*frozen_, frozen_at_));
  if (options_.on_frozen) TRY(options_.on_frozen());
  std::vector<wire::RoomState> states;
  TRY(capture(states));
  TRY(send_states(states));
  if (switch_) TRY(find_needed(states));
  report_.downtime.freeze = stopped - frozen_at_;
  report_.downtime.scan = asked - stopped;
  report_.downtime.state = monotonic_now() - asked;
  return last_pass();
}

Status Precopy::ask_log() {
  if (!log_) return {};
  written_ = TRY(log_->since_mark());
  report_.scanned_because = written_.blind;
  return {};
}

Status Precopy::look_in_detail() {
  return send_layout(TRY(layout_watch_.in_detail(log_.get())), next_round_, false);
}

void Precopy::lose_log(std::string why) {
  report_.scanned_because = std::move(why);
  log_.reset();
}

Status Precopy::capture(std::vector<wire::RoomState>& states) {
  Layout layout = TRY(layout_watch_.look_frozen(layout_, log_.get()));
  auto injector = TRY(tracee::Injector::create(*frozen_, &layout));
  captured_.emplace(state::CaptureContext{.process = process_,
                                          .memory = *memory_,
                                          .intent = intent_,
                                          .layout = layout,
                                          .files = TRY(state::read_open_files(process_)),
                                          .frozen = &*frozen_,
                                          .runner = injector.get()});
  captured_->interrupted = interrupted_->calls();
  if (open_files_) captured_->open_files = &*open_files_;
  TRY(state::capture_all(*captured_, [&](const wire::RoomState& message) -> Status {
    states.push_back(message);
    return {};
  }));
  TRY(injector->finish());
  captured_->runner = nullptr;
  TRY(send_layout(std::move(layout), next_round_, true));
  // ORDER: before the states, which open them.
  return objects_->announce(TRY(state::find_objects(process_, layout_, captured_->files)), true);
}

Status Precopy::send_states(const std::vector<wire::RoomState>& states) {
  for (const wire::RoomState& message : states)
    TRY(writers_.front()->write_message(wire::RecordType::kState, message));
  // The peer finishes its rooms while we look for the last pages.
  return writers_.front()->flush();
}

Status Precopy::last_pass() {
  TRY(fault_point("last-pass"));
  const Nanos begin = monotonic_now();
  const MemorySender::LastPass last = TRY(sender_->survey(log_ ? &written_ : nullptr));
  const Nanos scanned = monotonic_now();
  log_debug("last pass: {} runs written, {} discarded, {} guards", last.written.size(), last.discarded.size(),
            last.guards.size());
  missing_.clear();
  TRY(sender_->send(switch_ ? withhold(last) : last.written, LaneSet::Pass::kLast));
  TRY(objects_->look());
  TRY(pass_objects(true));
  TRY(send_last(last));
  report_.downtime.scan += scanned - begin;
  report_.downtime.pages = monotonic_now() - scanned;
  report_.pages = sender_->counts();
  report_.packed = {};
  for (const auto& sender : senders_) report_.packed += sender->packed();
  report_.raw_bytes = sender_->raw_bytes();
  report_.wire_bytes = wire_bytes();
  return {};
}

Status Precopy::send_last(const MemorySender::LastPass& last) {
  const auto tell_ranges = [&](const std::vector<AddressRange>& ranges, bool guard) -> Status {
    if (ranges.empty()) return {};
    wire::Discard message;
    message.set_guard(guard);
    for (const AddressRange& range : ranges) *message.add_ranges() = wire::to_message(range);
    return writers_.front()->write_message(wire::RecordType::kDiscard, message);
  };
  TRY(tell_ranges(last.discarded, false));
  TRY(tell_ranges(last.guards, true));
  if (!missing_.empty()) TRY(tell_missing());
  if (options_.verify)
    report_.verified_pages =
        TRY(send_hashes(*memory_, *tracker_, layout_, left_out_of_hashes(*frozen_), *writers_.front()));
  // The end goes over every channel: when the peer has seen it on all, it has everything.
  for (wire::RecordWriter* writer : writers_) {
    TRY(writer->write_message(wire::RecordType::kEndOfState, wire::EndOfState()));
    TRY(writer->flush());
  }
  return {};
}

void Precopy::forget_undo() {
  if (captured_) captured_->undo.clear();
}

Status Precopy::kill() {
  Status killed = frozen_->kill();
  // SAFETY: undone now, a connection would speak beside its copy on the other host: unsent bytes, a FIN.
  // Forgotten, the last reference to it is closed in repair mode, without a word.
  forget_undo();
  return killed;
}

Status Precopy::thaw() {
  if (captured_) {
    for (auto undo = captured_->undo.rbegin(); undo != captured_->undo.rend(); ++undo) (*undo)();
    captured_.reset();
  }
  Status thawed = frozen_ ? frozen_->finish() : Status();
  frozen_.reset();
  hold_.reset();
  return thawed;
}

}  // namespace godwit::migration
