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
#include "engine/migration/missing_message.h"
#include "engine/migration/postcopy_source.h"
#include "engine/migration/precopy.h"
#include "engine/migration/session.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

void pause_for(Nanos time) {
  const timespec ts = to_timespec(time);
  ::nanosleep(&ts, nullptr);
}

/// Whether another connection may help: not, when the memory of the original cannot be read.
bool is_of_link(const Error& error) {
  return error.kind != ErrorKind::kTargetGone && error.kind != ErrorKind::kCorrupt && error.err != EFAULT &&
         error.err != EIO;
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
    TRY(check_postcopy());
    TRY(judge(TRY(check_there(*link_, *process_, options_.move_addresses)), options_.on_findings));
    return make_precopy();
  }

  Status check_postcopy() {
    const Limits limits = control_.limits();
    const bool wanted = limits.postcopy.allowed || limits.on_timeout == OnTimeout::kPostcopy;
    if (wanted && options_.verify)
      return fail(ErrorKind::kUsage, "migrate", "--verify",
                  "it compares all memory before the copy runs: post-copy has not sent all by then");
    if (wanted && !link_->agreed("postcopy"))
      return fail(ErrorKind::kUnsupported, "migrate by post-copy", link_->peer_name(),
                  "the destination engine is too old for it");
    if (link_->agreed("postcopy") && !options_.verify) control_.allow_postcopy();
    return {};
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
    precopy.on_switch = [this] { return prepare_switch(); };
    precopy.on_frozen = [this]() -> Status {
      if (addresses_) TRY(addresses_->freeze());
      return hooks_.run("frozen", options_.pid, link_->peer_name());
    };
    precopy_ = TRY(Precopy::create(*process_, intent_, link_->writers(), control_, std::move(precopy),
                                   [this](uint32_t) { return link_->barrier(); }));
    return {};
  }

  /// The connections for missing pages, and what the destination needs for them, before the freeze.
  Status prepare_switch() {
    if (!link_->agreed("postcopy") || options_.verify)
      return fail(ErrorKind::kUnsupported, "switch to post-copy", link_->peer_name(),
                  options_.verify ? "--verify rules it out" : "the destination engine is too old for it");
    TRY(link_->control().write_message(wire::RecordType::kPostcopy, wire::Postcopy()));
    TRY(link_->barrier());
    serving_ = TRY(connect_serving());
    return {};
  }

  Result<std::unique_ptr<ServingLink>> connect_serving() {
    auto made = TRY(ServingLink::connect(options_.link, *link_, link_->channels()));
    made->set_bandwidth(control_.bandwidth());
    return made;
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
    // While COMMIT is under way: the first fault comes with the first instruction.
    prepare_source();
    TRY(link_->await(wire::RecordType::kRunning));
    const Nanos running = monotonic_now();
    Downtime& downtime = precopy_->report().downtime;
    downtime.resume = running - commit_left_;
    downtime.commit = running - precopy_->frozen_at() -
                      (downtime.freeze + downtime.scan + downtime.pages + downtime.state + downtime.resume);
    return source_ ? serve() : finish_running();
  }

  // ---- post-copy
  // -------------------------------------------------------------------------------------------------
  void prepare_source() {
    if (precopy_->missing().empty()) return;
    const auto compress = link_->agreed("packed-pages") ? options_.compress : Compression::kNone;
    source_.emplace(precopy_->memory(), precopy_->missing(), precopy_->hot(), compress);
  }

  /// The copy runs; its pages leave from the original, until it has all.
  Status serve() {
    Status ended = advance(Event::kPeerLacks);
    // ORDER: the last word on this channel; the destination then tells where the addresses are.
    (void)link_->control().finish();
    show_serving();
    while (phase_ == Phase::kServing) {
      Status served = source_->serve(*serving_);
      if (served.ok()) return finish_serving(std::move(ended));
      log_debug("while serving: {}", served.error().message());
      if (!is_of_link(served.error())) {
        (void)advance(Event::kPeerLost);
        return stranded(served.error());
      }
      (void)advance(Event::kFailure);
      if (verdict_ == Event::kPeerRunning) return finish_serving(std::move(ended));
      (void)advance(verdict_);
      if (phase_ != Phase::kServing) return stranded(served.error());
    }
    return ended;
  }

  Status finish_serving(Status ended) {
    precopy_->report().postcopy = source_->report();
    Status finished = finish_running();
    return ended.ok() ? std::move(finished) : std::move(ended);
  }

  void show_serving() {
    control_.set_link({[this] { return link_->bytes_sent() + served_before_ + serving_->bytes_sent(); },
                       [this](uint64_t bandwidth) { serving_->set_bandwidth(bandwidth); },
                       {},
                       [this] { return source_->remaining(); }});
    control_.publish([this](Statistics& s) {
      s.state = JobState::kPostcopy;
      s.downtime = precopy_->report().downtime.total();
    });
    if (options_.on_progress) {
      options_.on_progress({.phase = "post-copy",
                            .round = static_cast<uint32_t>(precopy_->report().rounds.size()),
                            .pages = source_->remaining() / kPageSize,
                            .wire_bytes = link_->bytes_sent()});
    }
  }

  /// Anew, until the limit. verdict_ says what came of it.
  void reconnect() {
    const Nanos until = monotonic_now() + options_.reconnect;
    verdict_ = Event::kPeerLost;
    do {
      const auto verdict = ask_verdict(options_.link, link_->session(), link_->query_key());
      if (verdict.ok() && verdict.value() == wire::Verdict::RUNNING) {
        verdict_ = Event::kPeerRunning;
        return;
      }
      if (verdict.ok() && verdict.value() == wire::Verdict::LACKING) {
        const Status again = serve_anew();
        if (again.ok()) {
          verdict_ = Event::kPeerLacks;
          return;
        }
        log_debug("connect again: {}", again.error().message());
      }
      pause_for(std::chrono::milliseconds(200));
    } while (monotonic_now() < until);
  }

  /// The destination begins with what it still lacks.
  Status serve_anew() {
    auto link = TRY(connect_serving());
    std::vector<AddressRange> missing;
    for (bool more = true; more;) {
      const auto message =
          TRY(wire::parse<wire::Missing>(TRY(wire::expect(link->requests(), wire::RecordType::kMissing))));
      for (const AddressRange& range : TRY(to_ranges(message))) missing.push_back(range);
      more = message.more();
    }
    TRY(source_->lacks(missing));
    control_.set_link({});
    served_before_ += serving_ ? serving_->bytes_sent() : 0;
    serving_ = std::move(link);
    show_serving();
    return {};
  }

  /// The pages are here, and cannot get there. Neither may go on without the other.
  Status stranded(const Error& why) {
    precopy_->forget_undo();
    control_.set_link({});
    return fail(
        ErrorKind::kInDoubt, "serve the pages that the destination lacks",
        fmt::format("pid {}: {} pages left", options_.pid, source_->remaining() / kPageSize),
        fmt::format(
            "{} runs the process, or holds it ({}); the original stays stopped here with those pages: "
            "`godwit resolve {} --discard` ends it; --resume lets it run, if the copy is dead",
            options_.link.destination, why.message(), options_.pid));
  }

  Status finish_running() {
    Status ended = advance(Event::kPeerRunning);
    remove_in_doubt(options_.pid);
    (void)link_->control().finish();
    precopy_->report().total = monotonic_now() - started_;
    precopy_->report().wire_bytes =
        link_->bytes_sent() + served_before_ + (serving_ ? serving_->bytes_sent() : 0);
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
    if (phase_ == Phase::kDone || phase_ == Phase::kInDoubt) return error;
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
      case Event::kPeerLacks:
        return serve();
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
      if (verdict.ok() && verdict.value() == wire::Verdict::LACKING && source_) {
        verdict_ = Event::kPeerLacks;
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
      case Action::kReconnect:
        reconnect();
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
  std::unique_ptr<ServingLink> serving_;  ///< from the decision to switch on
  std::optional<PostcopySource> source_;  ///< from COMMIT on, if pages are missing
  uint64_t served_before_ = 0;            ///< bytes, over connections that broke
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
