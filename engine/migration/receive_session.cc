#include "engine/migration/receive_session.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "engine/base/fault_point.h"
#include "engine/base/realtime.h"
#include "engine/migration/clock_sync.h"
#include "engine/migration/dead_commits.h"
#include "engine/migration/huge_pages.h"
#include "engine/migration/inventory.h"
#include "engine/migration/journal.h"
#include "engine/migration/link.h"
#include "engine/state/file_facts.h"
#include "engine/state/foreign_path.h"
#include "engine/state/host_facts.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

using wire::RecordType;

wire::Finding to_message(const state::Finding& f) {
  wire::Finding message;
  message.set_room(f.room);
  message.set_subject(f.subject);
  message.set_what(f.what);
  message.set_why(f.why);
  message.set_remedy(f.remedy);
  message.set_fatal(f.fatal);
  return message;
}

/// What speaks against the file on this host, if anything.
std::optional<state::Finding> judge_file(const wire::FileFact& wanted) {
  const auto finding = [&](std::string what, std::string why) {
    return state::Finding{std::string(kFilesRoom),
                          wanted.path(),
                          std::move(what),
                          std::move(why),
                          "bring the same file to the destination, or move the process when it has closed it",
                          true};
  };
  struct stat status {};
  if (::stat(wanted.path().c_str(), &status) != 0)
    return finding("the destination does not have this file", strerror(errno));
  if ((status.st_mode & S_IFMT) != (wanted.mode() & S_IFMT))
    return finding("the destination has another kind of file at this path",
                   "the process would not find what it left");
  // A file that is only written may change until the freeze; its room compares then, and refuses.
  if (wanted.build_id().empty() && wanted.hash().empty() && !wanted.mapped()) return std::nullopt;
  const auto here = state::file_facts(wanted.path());
  if (!here.ok()) return finding("the destination cannot read this file", here.error().message());
  const std::string differs = state::difference(wanted, here.value());
  if (differs.empty()) return std::nullopt;
  return finding("the destination's file differs: " + differs,
                 "clean pages of a mapping and what is read later are taken from the destination's file");
}

}  // namespace

ReceiveSession::~ReceiveSession() {
  if (fate_ != Fate::kRunning && fate_ != Fate::kLacking && addresses_) (void)addresses_->abort();
}

ReceiveSession::Listed::Listed(ReceiveSession& session, size_t index, transport::Channel& channel)
    : session_(session), index_(index) {
  session_.lane_channels_[index_] = &channel;
}

ReceiveSession::Listed::~Listed() {
  const std::lock_guard lock(session_.mutex_);
  session_.lane_channels_[index_] = nullptr;
}

bool ReceiveSession::change_fate(Fate from, Fate to) {
  const std::lock_guard lock(mutex_);
  if (fate_ != from) return false;
  fate_ = to;
  return true;
}

wire::Verdict::Value ReceiveSession::verdict() {
  const std::lock_guard lock(mutex_);
  switch (fate_) {
    case Fate::kRunning:
      return wire::Verdict::RUNNING;
    case Fate::kLacking:
      return wire::Verdict::LACKING;
    case Fate::kCommitted:
      return wire::Verdict::UNKNOWN;  // any moment now; ask again
    default:
      break;
  }
  fate_ = Fate::kAborted;
  cut_all();  // the session ends now, and the shell with it
  changed_.notify_all();
  return wire::Verdict::ABORTED;
}

/// With the lock.
void ReceiveSession::cut_all() {
  for (transport::Channel* channel : lane_channels_) {
    if (channel != nullptr) channel->cancel();
  }
  for (transport::Channel* channel : serving_) channel->cancel();
}

void ReceiveSession::fail_session(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!lane_error_) lane_error_ = error;
  cut_all();
  changed_.notify_all();
}

// ---- control channel
// ---------------------------------------------------------------------------------------------

Status ReceiveSession::run(transport::Channel& channel, wire::RecordReader& reader) {
  std::optional<Listed> listed;
  {
    const std::lock_guard lock(mutex_);
    lane_barrier_.assign(header_.channels, 0);
    lane_ended_.assign(header_.channels, false);
    lane_channels_.assign(header_.channels, nullptr);
    listed.emplace(*this, 0, channel);
  }
  wire::RecordWriter writer(channel, reader.header());
  TRY(greet(channel, writer, reader.header()));
  Status ended = converse(channel, reader, writer);
  if (ended.ok()) return ended;
  Error error = ended.take_error();
  {
    const std::lock_guard lock(mutex_);
    if (lane_error_) error = *lane_error_;
    if (fate_ != Fate::kRunning && fate_ != Fate::kLacking) fate_ = Fate::kAborted;
  }
  if (error.kind != ErrorKind::kPeerGone) {
    (void)writer.write_message(RecordType::kAbort, wire::to_message(error));
    (void)writer.flush();
  }
  fail_session(error);
  if (had_inventory_) (void)hooks_.run("aborted", rebuild_.pid(), channel.peer_name());
  return error;
}

Status ReceiveSession::admit(transport::Channel& channel, const wire::Hello& hello,
                             const wire::StreamHeader& header) const {
  TRY(binding_.check(channel, hello, header));
  if (header.channels == header_.channels) return {};
  return fail(ErrorKind::kCorrupt, "join a session", fmt::format("channel {}", header.channel),
              "it counts the channels of the session otherwise");
}

Status ReceiveSession::admit_serving(transport::Channel& channel, const wire::Hello& hello,
                                     const wire::StreamHeader& header) const {
  TRY(binding_.check(channel, hello, header));
  if (header.channel >= header_.channels && header.channel < header.channels) return {};
  return fail(ErrorKind::kCorrupt, "join a session", fmt::format("channel {}", header.channel),
              "connections that serve pages follow on the session's own");
}

Status ReceiveSession::greet(transport::Channel& channel, wire::RecordWriter& writer,
                             const wire::StreamHeader& header) {
  wire::Hello hello = make_hello(header.session, wire::ROLE_DESTINATION, header.channels);
  hello.set_proof(TRY(binding_.prove(channel, wire::ROLE_DESTINATION, header)));
  TRY(writer.start());
  TRY(writer.write_message(RecordType::kHello, hello));
  return writer.flush();
}

Status ReceiveSession::converse(transport::Channel& channel, wire::RecordReader& reader,
                                wire::RecordWriter& writer) {
  std::optional<RealtimeBoost> boost;
  for (;;) {
    const wire::Record record = TRY(reader.next());
    boost_if(rebuild_.is_urgent(), boost);
    switch (record.type) {
      case RecordType::kClockPing:
        TRY(writer.write_message(RecordType::kClockPong,
                                 answer_clock(TRY(wire::parse<wire::Clock>(record)))));
        TRY(writer.flush());
        break;
      case RecordType::kInventory:
        TRY(take_inventory(record, writer));
        break;
      case RecordType::kBarrier:
        TRY(answer_barrier(TRY(wire::parse<wire::Barrier>(record)).id(), writer));
        break;
      case RecordType::kAbort:
        return wire::to_error(TRY(wire::parse<wire::Abort>(record)));
      case RecordType::kEnd:
        return fail(ErrorKind::kPeerGone, "receive a process", channel.peer_name(),
                    "the source ended the stream");
      case RecordType::kEndOfState:
        TRY(wait_for_lanes(0, true));
        TRY(rebuild_.take(record));
        TRY(prepare(channel, writer));
        return commit(reader, writer);
      default:
        TRY(rebuild_.take(record));
    }
  }
}

Status ReceiveSession::take_inventory(const wire::Record& record, wire::RecordWriter& writer) {
  const auto inventory = TRY(wire::parse<wire::Inventory>(record));
  // A source asks again what may hold it back for a moment only; once the shell is made there is no question.
  if (had_inventory_)
    return fail(ErrorKind::kCorrupt, "take the inventory", record.name(), "it is the second one");
  wire::Findings answer;
  *answer.mutable_facts() = TRY(state::collect_host_facts());
  state::Findings findings = state::compare_hosts(inventory.facts(), answer.facts());
  if (auto found = judge_huge_pages(inventory.huge_pages())) findings.push_back(std::move(*found));
  for (const wire::FileFact& file : inventory.files()) {
    TRY(state::require_plain_path(file.path(), "compare a file"));
    if (auto found = judge_file(file)) findings.push_back(std::move(*found));
  }
  std::vector<address::ServiceAddress> services;
  for (const std::string& text : inventory.moved_addresses())
    services.push_back(TRY(address::ServiceAddress::parse(text)));
  if (!services.empty()) {
    clear_dead_commits();
    auto plan = address::AddressMoveDestination::plan(services);
    if (plan.ok())
      addresses_ = plan.take();
    else
      findings.push_back({"addresses", plan.error().subject, plan.error().operation, plan.error().message(),
                          plan.error().remedy, true});
  }
  for (const state::Finding& finding : findings) *answer.add_findings() = to_message(finding);
  // ORDER: the shell is made before the answer, so that a taken pid is an answer too.
  if (!state::any_fatal(findings)) {
    had_inventory_ = true;
    TRY(rebuild_.begin(inventory));
  }
  TRY(writer.write_message(RecordType::kFindings, answer));
  return writer.flush();
}

Status ReceiveSession::answer_barrier(uint32_t id, wire::RecordWriter& writer) {
  TRY(wait_for_lanes(id, false));
  wire::Ack ack;
  ack.set_barrier(id);
  TRY(writer.write_message(RecordType::kAck, ack));
  return writer.flush();
}

Status ReceiveSession::wait_for_lanes(uint32_t barrier, bool ended) {
  std::unique_lock lock(mutex_);
  const auto reached = [&] {
    for (size_t lane = 1; lane < lane_barrier_.size(); ++lane) {
      if (ended ? !lane_ended_[lane] : lane_barrier_[lane] < barrier) return false;
    }
    return true;
  };
  changed_.wait(lock, [&] { return lane_error_.has_value() || reached(); });
  if (lane_error_) return *lane_error_;
  return {};
}

Status ReceiveSession::prepare(transport::Channel& channel, wire::RecordWriter& writer) {
  TRY(fault_point("destination-prepared"));
  if (!change_fate(Fate::kOpen, Fate::kPrepared))
    return fail(ErrorKind::kCancelled, "receive a process", channel.peer_name(),
                "the session was given up meanwhile");
  wire::Prepared prepared;
  prepared.set_pages_installed(rebuild_.pages_installed());
  TRY(writer.write_message(RecordType::kPrepared, prepared));
  TRY(writer.flush());
  return channel.set_read_timeout(options_.commit_patience());
}

/// Rule 3: without COMMIT in time, the prepared process goes.
Status ReceiveSession::commit(wire::RecordReader& reader, wire::RecordWriter& writer) {
  const wire::Record record = TRY(wire::expect(reader, RecordType::kCommit));
  const auto message = TRY(wire::parse<wire::Commit>(record));
  const std::string_view session(reinterpret_cast<const char*>(header_.session.data()),
                                 header_.session.size());
  if (message.session() != session)
    return fail(ErrorKind::kCorrupt, "commit", record.name(), "it is for another session");
  TRY(fault_point("destination-commit"));
  if (!change_fate(Fate::kPrepared, Fate::kCommitted))
    return fail(ErrorKind::kCancelled, "commit", record.name(),
                "a resolver was told that this session is aborted");
  return run_process(writer);
}

Status ReceiveSession::run_process(wire::RecordWriter& writer) {
  const Nanos begin = monotonic_now();
  TRY(hooks_.run("pre-resume", rebuild_.pid(), ""));
  const bool lacks = postcopy_.lacks();
  TRY(note_commit(header_.session, rebuild_.pid(), addresses_ ? addresses_->undo_record().to_text() : "",
                  binding_.query_key(), lacks));
  postcopy_.runs();
  Status resumed = addresses_ ? addresses_->claim() : Status{};
  if (resumed.ok()) resumed = rebuild_.resume();
  if (!resumed.ok()) {
    remove_verdict(header_.session);  // no thread has run: the source may take it back
    return resumed;
  }
  {
    const std::lock_guard lock(mutex_);
    fate_ = lacks ? Fate::kLacking : Fate::kRunning;
  }
  wire::Running running;
  running.set_duration(static_cast<uint64_t>((monotonic_now() - begin).count()));
  running.add_pids(rebuild_.inner_pid());
  (void)writer.write_message(RecordType::kRunning, running);
  (void)writer.flush();
  (void)write_verdict(header_.session, lacks ? kLackingState : kRunningState, binding_.query_key());
  if (options_.on_running) options_.on_running(rebuild_.pid(), rebuild_.inner_pid());
  (void)hooks_.run("resumed", rebuild_.pid(), "");
  return {};
}

/// ORDER: announced before the source has let its held packets go, direct ones would overtake them, which TCP
/// takes for loss. A source that says nothing more has died: then at once.
Status ReceiveSession::part(transport::Channel& channel, wire::RecordReader& reader) {
  (void)channel.set_read_timeout(std::chrono::seconds(5));
  auto last = reader.next();
  if (addresses_) (void)addresses_->announce();
  if (!last.ok() || last->type == RecordType::kEnd) return {};
  return fail(ErrorKind::kCorrupt, "end a session", last->name(),
              "the process runs already; only the end of the stream may come");
}

void ReceiveSession::await_resident() {
  {
    const std::lock_guard lock(mutex_);
    if (fate_ != Fate::kLacking) return;
  }
  const bool resident = postcopy_.await_resident(
      [this] { return options_.cancelled != nullptr && options_.cancelled->load(); });
  const std::lock_guard lock(mutex_);
  if (!resident) return cut_all();  // the keeper holds it
  fate_ = Fate::kRunning;
  (void)write_verdict(header_.session, kRunningState, binding_.query_key());
}

Status ReceiveSession::serve(transport::Channel& channel, wire::RecordReader& reader, bool urgent) {
  bool runs = false;
  {
    const std::lock_guard lock(mutex_);
    if (fate_ == Fate::kAborted)
      return fail(ErrorKind::kCancelled, "serve pages", channel.peer_name(), "the session has ended");
    runs = fate_ == Fate::kLacking || fate_ == Fate::kRunning;
    serving_.push_back(&channel);
  }
  Status served = serve_missing(channel, reader, urgent, runs);
  const std::lock_guard lock(mutex_);
  std::erase(serving_, &channel);
  // What came over it may be lost, and only a new greeting tells the source. Of a peer that has all it is the
  // end.
  if (!served.ok()) {
    for (transport::Channel* other : serving_) other->cancel();
  }
  return served;
}

Status ReceiveSession::serve_missing(transport::Channel& channel, wire::RecordReader& reader, bool urgent,
                                     bool runs) {
  TRY(channel.set_read_timeout({}));  // a source that has nothing to send sends nothing
  wire::RecordWriter writer(channel, reader.header());
  TRY(greet(channel, writer, reader.header()));
  return postcopy_.serve(channel, reader, writer, urgent, runs);
}

// ---- further channels
// --------------------------------------------------------------------------------------------

Status ReceiveSession::join(transport::Channel& channel, wire::RecordReader& reader, uint16_t index) {
  std::optional<Listed> listed;
  {
    const std::lock_guard lock(mutex_);
    if (index == 0 || index >= lane_channels_.size() || lane_channels_[index] != nullptr)
      return fail(ErrorKind::kCorrupt, "join a session", fmt::format("channel {}", index),
                  "it is not expected, or there already");
    listed.emplace(*this, index, channel);
  }
  wire::RecordWriter writer(channel, reader.header());
  TRY(greet(channel, writer, reader.header()));
  Status served = serve_lane(reader, index);
  listed.reset();
  if (!served.ok()) fail_session(served.error());
  return served;
}

Status ReceiveSession::serve_lane(wire::RecordReader& reader, size_t lane) {
  std::optional<RealtimeBoost> boost;
  for (;;) {
    const wire::Record record = TRY(reader.next());
    boost_if(rebuild_.is_urgent(), boost);
    switch (record.type) {
      case RecordType::kPages:
      case RecordType::kObjectPages:
      case RecordType::kPacked:
        TRY(rebuild_.take(record));
        break;
      case RecordType::kBarrier: {
        const uint32_t id = TRY(wire::parse<wire::Barrier>(record)).id();
        const std::lock_guard lock(mutex_);
        lane_barrier_[lane] = id;
        changed_.notify_all();
        break;
      }
      case RecordType::kEndOfState: {
        const std::lock_guard lock(mutex_);
        lane_ended_[lane] = true;
        changed_.notify_all();
        return {};
      }
      default:
        return fail(ErrorKind::kCorrupt, "receive pages", record.name(), "it belongs on the control channel");
    }
  }
}

}  // namespace godwit::migration
