#include "engine/migration/precopy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>

#include "engine/base/fault_point.h"
#include "engine/base/log.h"
#include "engine/state/address_space.h"
#include "engine/state/house.h"
#include "engine/tracee/injector.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

/// linux/userfaultfd.h. KERNEL: an unprivileged target may make no other kind; asynchronous write-protection
/// is resolved by the kernel itself, so that it sees writes of the kernel all the same.
constexpr int kUserModeOnly = 1;

/// The fixed part of a freeze, until one was measured: capture, finish and two round trips.
constexpr Nanos kStateCost = std::chrono::milliseconds(3);

wire::LayoutMessage to_message(const Layout& layout, uint32_t round) {
  wire::LayoutMessage message;
  message.set_round(round);
  message.set_full(true);
  for (const Vma& vma : layout) *message.add_areas() = wire::to_message(vma);
  return message;
}

size_t lane_of(RemoteAddr at, size_t lanes) {
  return (at.value() >> 21) % lanes;
}

}  // namespace

Result<std::unique_ptr<Precopy>> Precopy::create(const tracee::Process& process, const state::Intent& intent,
                                                 std::vector<wire::RecordWriter*> writers,
                                                 PrecopyOptions options, Barrier barrier) {
  std::unique_ptr<Precopy> made(
      new Precopy(process, intent, std::move(writers), std::move(options), std::move(barrier)));
  made->started_ = monotonic_now();
  made->report_.pid = process.pid();
  made->memory_ = TRY(tracee::Memory::open(process.pid()));
  made->objects_ = TRY(ObjectSender::create(*made->writers_.front()));
  return made;
}

Precopy::~Precopy() {
  (void)thaw();
  disarm();
}

// ---- arm
// ---------------------------------------------------------------------------------------------------------

/// A userfaultfd belongs to the address space of its maker, so the target makes it; once it is taken out, the
/// target's own number is closed. The process stands still for some 100 us.
Status Precopy::arm() {
  TRY(fault_point("arm"));
  interrupted_.emplace(InterruptedCalls::create(process_));
  report_.restarts_anew = interrupted_->blind();
  const Nanos begin = monotonic_now();
  auto frozen = TRY(tracee::Frozen::freeze(process_));
  TRY(interrupted_->look(frozen, begin));
  auto injector = TRY(tracee::Injector::create(frozen));
  tracee::Batch make;
  const size_t made =
      make.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | kUserModeOnly}, "userfaultfd in the target");
  TRY(injector->run(process_.pid(), make));
  const int number = static_cast<int>(make.result(made));
  // ORDER: whatever fails from here on, the number inside is closed before it is told.
  Status undisturbed = fault_point("armed-inside");
  Result<Fd> taken = process_.pidfd().get_fd(number);
  tracee::Batch close;
  close.call(SYS_close, {number}, "close the target's userfaultfd");
  TRY(injector->run(process_.pid(), close));
  TRY(injector->finish());
  TRY(frozen.finish());
  TRY(std::move(undisturbed));

  tracker_ =
      std::make_unique<uffd::WpTracker>(TRY(uffd::WpTracker::create(process_.pid(), TRY(std::move(taken)))));
  std::vector<std::unique_ptr<Lane>> lanes;
  for (wire::RecordWriter* writer : writers_)
    lanes.push_back(TRY(Lane::create(*writer, options_.cache_bytes / writers_.size())));
  const size_t count = lanes.size();
  sender_ = std::make_unique<MemorySender>(*memory_, *tracker_, std::move(lanes),
                                           [count](RemoteAddr at) { return lane_of(at, count); });
  return {};
}

void Precopy::disarm() {
  sender_.reset();
  if (tracker_) tracker_->release();
  tracker_.reset();
}

// ---- describe
// ----------------------------------------------------------------------------------------------------

Status Precopy::describe() {
  TRY(fault_point("describe-source"));
  const auto files = TRY(state::read_open_files(process_));
  layout_ = TRY(process_.detailed_layout());
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
  if (layout == layout_) return {};
  // ORDER: an object before its mappings.
  TRY(announce_objects(TRY(state::read_open_files(process_)), layout, frozen));
  layout_ = std::move(layout);
  TRY(writers_.front()->write_message(wire::RecordType::kLayout, to_message(layout_, round)));
  // The peer remaps on the control channel; pages of other channels must not overtake that, nor in the
  // freeze.
  if (barrier_ && writers_.size() > 1) TRY(barrier_(round));
  sender_->follow(layout_);
  // Frozen, nothing is written any more: new areas are only surveyed.
  return frozen ? Status() : track();
}

/// The process stands still meanwhile: at a boundary that is no longer one the kernel would split an area,
/// and the program's next mremap of it would fail.
Status Precopy::track() {
  if (!sender_->has_untracked()) return {};
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
  for (;;) {
    TRY(check_cancelled());
    TRY(round(next_round_++));
    const RoundStats& last = report_.rounds.back();
    const Forecast ahead = forecast(last, kStateCost);
    tell("pre-copy", ahead);
    switch (decide(last, ahead, options_.limits, monotonic_now() - started_)) {
      case Decision::kContinue:
        break;
      case Decision::kFreeze:
        return {};
      default:
        return fail(
            ErrorKind::kNotConverged, "converge",
            fmt::format(
                "pid {} after {} rounds: {:.0f} pages/s written, expected downtime {} ms, limit {} ms",
                process_.pid(), next_round_, ahead.dirty_pages_per_second, to_micros(ahead.downtime) / 1000,
                to_micros(options_.limits.downtime) / 1000),
            "raise --downtime-limit, --max-rounds, --timeout or --bandwidth, or move it when it writes less");
    }
  }
}

Status Precopy::one_more_round() {
  return round(next_round_++);
}

Status Precopy::round(uint32_t number) {
  TRY(fault_point("round"));
  RoundStats stats;
  stats.round = number;
  const uint64_t before = wire_bytes();
  // The slow look (smaps) stands before the collect, outside of what a round costs the target's dirty set.
  TRY(send_layout(TRY(process_.detailed_layout()), number, false));
  const Nanos begin = monotonic_now();
  const PageRuns written = TRY(sender_->collect());
  const Nanos scanned = monotonic_now();
  for (const PageRun& run : written) stats.pages += run.range.pages();
  TRY(sender_->send(written, number == 0, false));
  report_.object_pages += TRY(objects_->pass());
  wire::RoundEnd end;
  end.set_round(number);
  end.set_pages_dirty(stats.pages);
  TRY(writers_.front()->write_message(wire::RecordType::kRoundEnd, end));
  for (wire::RecordWriter* writer : writers_) TRY(writer->flush());
  if (barrier_) TRY(barrier_(number));
  stats.wire_bytes = wire_bytes() - before;
  stats.interval = collected_at_ == Nanos{} ? Nanos{} : begin - collected_at_;
  stats.scan = scanned - begin;
  stats.duration = monotonic_now() - begin;
  collected_at_ = begin;
  report_.rounds.push_back(stats);
  return {};
}

uint64_t Precopy::wire_bytes() const {
  return sender_->wire_bytes();
}

Status Precopy::check_cancelled() const {
  if (options_.cancelled != nullptr && options_.cancelled->load())
    return fail(ErrorKind::kCancelled, "migrate", fmt::format("pid {}", process_.pid()),
                "the original runs on");
  if (process_.pidfd().exited())
    return fail(ErrorKind::kTargetGone, "migrate", fmt::format("pid {}", process_.pid()),
                "the process ended by itself");
  return {};
}

void Precopy::tell(const char* phase, const Forecast& ahead) {
  if (!options_.progress) return;
  const RoundStats& last = report_.rounds.back();
  const double seconds = std::chrono::duration<double>(last.duration).count();
  options_.progress({phase, last.round, last.pages, wire_bytes(),
                     seconds > 0 ? static_cast<double>(last.wire_bytes) / seconds : 0,
                     ahead.dirty_pages_per_second, ahead.downtime});
}

// ---- the freeze
// --------------------------------------------------------------------------------------------------

Status Precopy::freeze() {
  TRY(check_cancelled());
  wire::LastRound last;
  last.set_round(next_round_);
  TRY(writers_.front()->write_message(wire::RecordType::kLastRound, last));
  TRY(writers_.front()->flush());
  TRY(fault_point("freeze"));

  report_.downtime = {};
  frozen_at_ = monotonic_now();
  report_.frozen_at = read_clock(CLOCK_REALTIME);
  frozen_.emplace(TRY(tracee::Frozen::freeze(process_)));
  const Nanos stopped = monotonic_now();
  TRY(fault_point("frozen"));
  TRY(interrupted_->look(*frozen_, frozen_at_));
  if (options_.on_frozen) TRY(options_.on_frozen());
  std::vector<wire::RoomState> states;
  TRY(capture(states));
  TRY(send_states(states));
  report_.downtime.freeze = stopped - frozen_at_;
  report_.downtime.state = monotonic_now() - stopped;
  return last_pass();
}

/// KERNEL: VmFlags come from smaps, which walks the page tables; maps costs microseconds. Flags of areas
/// known from the last round are taken from there, and only an area that is new makes us walk.
Status Precopy::capture(std::vector<wire::RoomState>& states) {
  Layout layout = TRY(process_.layout());
  if (!state::inherit_details(layout, layout_)) layout = TRY(process_.detailed_layout());
  auto injector = TRY(tracee::Injector::create(*frozen_));
  captured_.emplace(state::CaptureContext{.process = process_,
                                          .memory = *memory_,
                                          .intent = intent_,
                                          .layout = layout,
                                          .files = TRY(state::read_open_files(process_)),
                                          .frozen = &*frozen_,
                                          .runner = injector.get()});
  captured_->interrupted = interrupted_->calls();
  TRY(state::capture_all(*captured_, [&](const wire::RoomState& message) -> Status {
    states.push_back(message);
    return {};
  }));
  TRY(injector->finish());
  captured_->runner = nullptr;
  return send_layout(std::move(layout), next_round_, true);
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
  const MemorySender::LastPass last = TRY(sender_->survey());
  const Nanos scanned = monotonic_now();
  log_debug("last pass: {} runs written, {} discarded, {} guards", last.written.size(), last.discarded.size(),
            last.guards.size());
  TRY(sender_->send(last.written, false, true));
  TRY(objects_->announce(TRY(state::find_objects(process_, layout_, captured_->files)), true));
  report_.object_pages += TRY(objects_->pass());
  const auto tell_ranges = [&](const std::vector<AddressRange>& ranges, bool guard) -> Status {
    if (ranges.empty()) return {};
    wire::Discard message;
    message.set_guard(guard);
    for (const AddressRange& range : ranges) *message.add_ranges() = wire::to_message(range);
    return writers_.front()->write_message(wire::RecordType::kDiscard, message);
  };
  TRY(tell_ranges(last.discarded, false));
  TRY(tell_ranges(last.guards, true));
  // The end goes over every channel: when the peer has seen it on all, it has everything.
  for (wire::RecordWriter* writer : writers_) {
    TRY(writer->write_message(wire::RecordType::kEndOfState, wire::EndOfState()));
    TRY(writer->flush());
  }
  report_.downtime.scan = scanned - begin;
  report_.downtime.pages = monotonic_now() - scanned;
  report_.pages = sender_->counts();
  report_.raw_bytes = sender_->raw_bytes();
  report_.wire_bytes = wire_bytes();
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
  if (!frozen_) return {};
  Status thawed = frozen_->finish();
  frozen_.reset();
  return thawed;
}

}  // namespace godwit::migration
