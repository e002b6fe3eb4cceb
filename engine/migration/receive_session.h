// One session on the destination: greets, checks, feeds a Rebuild, and holds to the handover rules. The
// control channel's thread runs it; further channels join with their own.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/address/address_move.h"
#include "engine/migration/hooks.h"
#include "engine/migration/postcopy_destination.h"
#include "engine/migration/rebuild.h"
#include "engine/migration/receive.h"
#include "engine/migration/session_binding.h"
#include "engine/transport/channel.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/record_writer.h"

namespace godwit::migration {

class ReceiveSession {
 public:
  ReceiveSession(const ReceiveOptions& options, const wire::StreamHeader& header, SessionBinding binding = {})
      : options_(options),
        header_(header),
        binding_(binding),
        hooks_(options.hooks),
        rebuild_(options.pid_namespace, &postcopy_) {}
  ~ReceiveSession();

  /// The control channel, its hello already read. Blocks until the session has ended.
  Status run(transport::Channel& channel, wire::RecordReader& reader);
  /// Whoever sent this hello is the other end of this session. Any thread. Errors: Untrusted.
  Status admit(transport::Channel& channel, const wire::Hello& hello, const wire::StreamHeader& header) const;
  /// The same for serve(). Errors: Untrusted, Corrupt.
  Status admit_serving(transport::Channel& channel, const wire::Hello& hello,
                       const wire::StreamHeader& header) const;
  /// Who may ask for the verdict.
  [[nodiscard]] QueryKey query_key() const { return binding_.query_key(); }
  /// A further channel joins. Blocks until it has ended.
  Status join(transport::Channel& channel, wire::RecordReader& reader, uint16_t index);

  /// After a run that succeeded: waits for the source's last word, then tells the network where the addresses
  /// are. Errors: Corrupt when that word is another than the end; nothing comes of it.
  Status part(transport::Channel& channel, wire::RecordReader& reader);

  /// A connection over which missing pages come (serving_link.h). Blocks until it has ended.
  Status serve(transport::Channel& channel, wire::RecordReader& reader, bool urgent);
  /// After part(): until the process lacks nothing any more.
  void await_resident();

  /// What to tell a resolver. Rule 2: an answer "aborted" is a promise, so a session that was not committed
  /// yet can not be committed after it.
  wire::Verdict::Value verdict();

  [[nodiscard]] const std::vector<pid_t>& children() const { return rebuild_.children(); }
  [[nodiscard]] bool had_inventory() const { return had_inventory_; }

 private:
  enum class Fate : uint8_t { kInvalid = 0, kOpen, kPrepared, kCommitted, kLacking, kRunning, kAborted };

  /// A channel that may be cancelled from outside, for as long as its thread is in here.
  class Listed {
   public:
    Listed(ReceiveSession& session, size_t index, transport::Channel& channel);  // with the lock
    ~Listed();
    Listed(const Listed&) = delete;
    Listed& operator=(const Listed&) = delete;

   private:
    ReceiveSession& session_;
    size_t index_;
  };

  Status greet(transport::Channel& channel, wire::RecordWriter& writer, const wire::StreamHeader& header);
  Status converse(transport::Channel& channel, wire::RecordReader& reader, wire::RecordWriter& writer);
  Status take_inventory(const wire::Record& record, wire::RecordWriter& writer);
  Status answer_barrier(uint32_t id, wire::RecordWriter& writer);
  Status wait_for_lanes(uint32_t barrier, bool ended);
  Status prepare(transport::Channel& channel, wire::RecordWriter& writer);
  Status commit(wire::RecordReader& reader, wire::RecordWriter& writer);
  Status run_process(wire::RecordWriter& writer);
  Status serve_missing(transport::Channel& channel, wire::RecordReader& reader, bool urgent, bool runs);
  Status serve_lane(wire::RecordReader& reader, size_t lane);
  void fail_session(const Error& error);
  void cut_all();
  bool change_fate(Fate from, Fate to);

  const ReceiveOptions& options_;
  wire::StreamHeader header_;
  SessionBinding binding_;
  Hooks hooks_;
  PostcopyDestination postcopy_;
  Rebuild rebuild_;
  std::optional<address::AddressMoveDestination> addresses_;
  bool had_inventory_ = false;

  std::mutex mutex_;
  std::condition_variable changed_;
  Fate fate_ = Fate::kOpen;
  std::vector<uint32_t> lane_barrier_;  ///< of each further channel: the last barrier it passed
  std::vector<bool> lane_ended_;
  std::vector<transport::Channel*> lane_channels_;
  std::vector<transport::Channel*> serving_;  ///< connections for missing pages
  std::optional<Error> lane_error_;
};

}  // namespace godwit::migration
