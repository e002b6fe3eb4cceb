#include "engine/migration/migrate.h"

#include <fmt/format.h>
#include <signal.h>

#include "engine/address/address_move.h"
#include "engine/base/fault_point.h"
#include "engine/base/log.h"
#include "engine/base/warm_memory.h"
#include "engine/migration/control_server.h"
#include "engine/migration/guardian.h"
#include "engine/migration/hooks.h"
#include "engine/migration/inventory.h"
#include "engine/migration/journal.h"
#include "engine/migration/link.h"
#include "engine/migration/precopy.h"
#include "engine/migration/session.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

void pause_for(Nanos time) {
  const timespec ts = to_timespec(time);
  ::nanosleep(&ts, nullptr);
}

/// One migration, driven by the table of session.h: `advance` takes an event, and carries the actions out in
/// order.
class Migration {
 public:
  Migration(const MigrateOptions& options, Guardian guardian)
      : options_(options),
        hooks_(options.hooks),
        guardian_(std::move(guardian)),
        control_(options.pid, options.limits, options.link.bandwidth, options.cancelled) {}
  ~Migration() { control_.set_link({}); }
  Migration(const Migration&) = delete;
  Migration& operator=(const Migration&) = delete;

  Result<Report> run() {
    started_ = monotonic_now();
    // ORDER: after the guardian's fork, which shares all that is written later.
    warm_memory();
    Status done = stages();
    if (!done.ok()) done = give_up(done.take_error());
    if (done.ok()) linger();
    // In doubt the guardian has nothing to do either: the journal holds what a person needs.
    guardian_.dismiss();
    TRY(std::move(done));
    return precopy_->report();
  }

 private:
  // ---- the way of a success
  // --------------------------------------------------------------------------------------
  Status stages() {
    TRY(open());
    TRY(check_both());
    TRY(control_.check());
    TRY(advance(Event::kCheckPassed));
    guardian_.touching();
    TRY(prepare_addresses());
    TRY(precopy_->arm());
    TRY(precopy_->describe());
    TRY(precopy_->rounds());
    TRY(freeze());
    TRY(wait_until_prepared());
    TRY(commit());
    return wait_until_running();
  }

  Status open() {
    process_.emplace(TRY(tracee::Process::open(options_.pid)));
    server_ = TRY(ControlServer::start(control_, job_path(options_.pid)));
    control_.publish([this](Statistics& s) { s.destination = options_.link.destination; });
    intent_ = intent_of(options_.move_addresses);
    return {};
  }

  /// Findings of this host, then the destination's; nothing was touched yet on either.
  Status check_both() {
    TRY(judge(TRY(check_here(*process_, intent_)), options_.on_findings));
    link_ = TRY(Link::connect(options_.link));
    control_.set_link({[this] { return link_->bytes_sent(); },
                       [this](uint64_t bandwidth) { link_->set_bandwidth(bandwidth); },
                       [this] { link_->cancel(); }});
    TRY(judge(TRY(check_there(*link_, *process_, options_.move_addresses)), options_.on_findings));
    return make_precopy();
  }

  Status make_precopy() {
    PrecopyOptions precopy;
    precopy.cache_bytes = link_->agreed("xbzrle") ? options_.cache_bytes : 0;
    precopy.tracker = options_.tracker;
    precopy.compress = link_->agreed("packed-pages") ? options_.compress : Compression::kNone;
    precopy.is_peer_behind = [this](size_t channel) { return link_->is_peer_behind(channel); };
    precopy.progress = options_.on_progress;
    precopy.verify = options_.verify;
    precopy.policy = options_.policy;
    precopy.on_frozen = [this]() -> Status {
      if (addresses_) TRY(addresses_->freeze());
      return hooks_.run("frozen", options_.pid, link_->peer_name());
    };
    precopy_ = TRY(Precopy::create(*process_, intent_, link_->writers(), control_, std::move(precopy),
                                   [this](uint32_t) { return link_->barrier(); }));
    return {};
  }

  Status prepare_addresses() {
    if (options_.move_addresses.empty()) return {};
    std::vector<address::Departure> departures;
    for (const std::string& text : options_.move_addresses) {
      departures.push_back(
          {TRY(address::ServiceAddress::parse(text)), TRY(address::IpAddress::parse(link_->peer_address()))});
    }
    addresses_ = TRY(address::AddressMoveSource::plan(departures));
    TRY(guardian_.remember_addresses(addresses_->undo_record().to_text()));
    TRY(addresses_->prepare());
    return addresses_->arm();
  }

  Status freeze() {
    TRY(hooks_.run("pre-freeze", options_.pid, link_->peer_name()));
    return precopy_->freeze_at_good_instant([this] { return advance(Event::kConverged); },
                                            [this] { return advance(Event::kBadInstant); });
  }

  Status wait_until_prepared() {
    TRY(link_->await(wire::RecordType::kPrepared));
    TRY(fault_point("prepared"));
    guardian_.stopping();
    return advance(Event::kPeerPrepared);
  }

  Status commit() {
    // ORDER: from here on nobody may cancel, and nothing that a cancel does may still be under way.
    TRY(control_.begin_commit());
    InDoubt entry;
    entry.pid = options_.pid;
    entry.start_time = TRY(process_->stat()).start_time;
    entry.destination = options_.link.destination;
    entry.session = wire::to_hex(link_->session());
    if (addresses_) entry.undo = addresses_->undo_record().to_text();
    TRY(write_in_doubt(entry));
    TRY(fault_point("before-commit"));
    // ORDER: from here on the guardian asks the peer; only then may the first byte leave.
    guardian_.committing(link_->session(), link_->query_key());
    return advance(Event::kCommitLeaves);
  }

  Status wait_until_running() {
    TRY(link_->await(wire::RecordType::kRunning));
    const Nanos running = monotonic_now();
    Downtime& downtime = precopy_->report().downtime;
    downtime.resume = running - commit_left_;
    downtime.commit = running - precopy_->frozen_at() -
                      (downtime.freeze + downtime.scan + downtime.pages + downtime.state + downtime.resume);
    return finish_running();
  }

  Status finish_running() {
    Status ended = advance(Event::kPeerRunning);
    remove_in_doubt(options_.pid);
    (void)link_->control().finish();
    precopy_->report().total = monotonic_now() - started_;
    precopy_->report().wire_bytes = link_->bytes_sent();
    control_.publish([this](Statistics& s) {
      s.state = JobState::kCompleted;
      s.total = precopy_->report().total;
      s.downtime = precopy_->report().downtime.total();
    });
    if (options_.on_completed) options_.on_completed(precopy_->report());
    (void)hooks_.run("resumed", options_.pid, link_->peer_name());
    return ended;
  }

  void linger() {
    if (!addresses_) return;
    guardian_.departing();
    pause_for(options_.forward_after);
    (void)addresses_->finish();
  }

  // ---- failure
  // ---------------------------------------------------------------------------------------------------
  Status give_up(Error error) {
    if (phase_ == Phase::kDone) return error;
    error = control_.explain(std::move(error));
    if (phase_ == Phase::kCommitted) return after_commit(std::move(error));
    reason_ = error;
    (void)advance(Event::kFailure);
    (void)hooks_.run("aborted", options_.pid, link_ ? link_->peer_name() : "");
    return error;
  }

  /// COMMIT left and its answer did not come: only the peer knows.
  Status after_commit(Error error) {
    log_debug("after COMMIT: {}", error.message());
    (void)advance(Event::kFailure);
    switch (verdict_) {
      case Event::kPeerRunning:
        return finish_running();
      case Event::kPeerAborted:
        (void)advance(Event::kPeerAborted);
        remove_in_doubt(options_.pid);
        error.remedy = "the destination gave up; the original runs on";
        return error;
      default:
        (void)advance(Event::kPeerLost);
        leave_as_it_is();
        return fail(
            ErrorKind::kInDoubt, "learn whether the destination runs the process",
            fmt::format("pid {}", options_.pid),
            fmt::format(
                "{} does not answer ({}); look there, then `godwit resolve {} --discard` if it runs it, "
                "--resume if it surely does not and never will",
                options_.link.destination, error.message(), options_.pid));
    }
  }

  /// In doubt nothing may be undone: the destination may run the process and own its addresses. What would
  /// undo itself at its end is let go on purpose; the journal and `godwit resolve` take over.
  void leave_as_it_is() {
    (void)addresses_.release();
    precopy_->forget_undo();
  }

  void ask_peer() {
    const Nanos until = monotonic_now() + options_.link.verdict_patience();
    while (monotonic_now() < until) {
      const auto verdict = ask_verdict(options_.link, link_->session(), link_->query_key());
      if (verdict.ok() && verdict.value() == wire::Verdict::RUNNING) {
        verdict_ = Event::kPeerRunning;
        return;
      }
      if (verdict.ok() && verdict.value() == wire::Verdict::ABORTED) {
        verdict_ = Event::kPeerAborted;
        return;
      }
      pause_for(std::chrono::milliseconds(200));
    }
    verdict_ = Event::kPeerLost;
  }

  // ---- actions
  // ---------------------------------------------------------------------------------------------------
  Status advance(Event event) {
    const Step next = step(phase_, event);
    CHECK(next.phase != Phase::kInvalid);
    log_debug("{} --{}--> {}", to_string(phase_), to_string(event), to_string(next.phase));
    phase_ = next.phase;
    Status first_failure;
    for (const Action action : next.actions) {
      Status done = perform(action);
      if (!done.ok() && first_failure.ok()) first_failure = std::move(done);
    }
    return first_failure;
  }

  Status perform(Action action) {
    switch (action) {
      case Action::kFreeze:
        return {};  // freeze() does it: it can fail half-way and be tried again
      case Action::kThaw:
        return precopy_ ? precopy_->thaw() : Status{};
      case Action::kStopForGood:
        return precopy_->frozen().make_stop_permanent();
      case Action::kUndoStop:
        return precopy_->frozen().undo_stop();
      case Action::kDisarm:
        if (precopy_) precopy_->disarm();
        return {};
      case Action::kMoveAddresses:
        return addresses_ ? addresses_->handover() : Status{};
      case Action::kReturnAddresses:
        return addresses_ ? addresses_->abort() : Status{};
      case Action::kForwardPackets:
        return addresses_ ? addresses_->commit() : Status{};
      case Action::kSendCommit:
        return send_commit();
      case Action::kTellAbort:
        return tell_abort();
      case Action::kAskPeer:
        ask_peer();
        return {};
      case Action::kKillOriginal:
        return precopy_->kill();
      case Action::kInvalid:
        break;
    }
    return fail(ErrorKind::kBug, "carry out an action", "session table");
  }

  Status send_commit() {
    wire::Commit message;
    message.set_session(link_->session().data(), link_->session().size());
    TRY(link_->control().write_message(wire::RecordType::kCommit, message));
    TRY(link_->control().flush());
    commit_left_ = monotonic_now();
    return fault_point("after-commit");
  }

  Status tell_abort() {
    if (!link_) return {};
    TRY(link_->control().write_message(wire::RecordType::kAbort, wire::to_message(reason_)));
    return link_->control().flush();
  }

  const MigrateOptions& options_;
  Hooks hooks_;
  Guardian guardian_;
  Control control_;
  state::Intent intent_;
  Phase phase_ = Phase::kChecking;
  std::optional<tracee::Process> process_;
  std::unique_ptr<Link> link_;
  std::unique_ptr<address::AddressMoveSource> addresses_;
  std::unique_ptr<Precopy> precopy_;
  Event verdict_ = Event::kInvalid;
  Error reason_;
  Nanos started_{}, commit_left_{};
  std::unique_ptr<ControlServer>
      server_;  // the last member: its thread ends before all that it may call goes
};

/// What the move of its addresses changed on this host is put back, or completed.
Status decide_addresses(const InDoubt& entry, Status (*decide)(const address::AddressUndo&)) {
  if (entry.undo.empty()) return {};
  return decide(TRY(address::AddressUndo::from_text(entry.undo)));
}

}  // namespace

Result<Report> migrate(const MigrateOptions& options) {
  TRY(choose_tracker(options.tracker));
  Migration migration(options, TRY(Guardian::start(options.pid, options.link)));
  return migration.run();
}

Status resolve(pid_t pid, bool resume) {
  const auto entry = TRY(read_in_doubt(pid));
  if (!entry)
    return fail(ErrorKind::kRefused, "resolve", fmt::format("pid {}", pid),
                "no migration of it is in doubt on this host");
  const auto process = TRY(tracee::Process::open(pid));
  if (TRY(process.stat()).start_time != entry->start_time) {
    remove_in_doubt(pid);
    return fail(ErrorKind::kTargetGone, "resolve", fmt::format("pid {}", pid),
                "the original has ended; the pid is another process now");
  }
  // ORDER: the process finds its addresses when it runs again; it is gone when they go.
  if (resume) {
    TRY(decide_addresses(*entry, address::undo));
    TRY(restore_target(pid, true));
  } else {
    TRY(process.pidfd().send_signal(SIGKILL));
    TRY(decide_addresses(*entry, address::depart));
  }
  remove_in_doubt(pid);
  return {};
}

}  // namespace godwit::migration
