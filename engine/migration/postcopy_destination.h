// The destination's half of post-copy: what the process lacks when it is let run, the server of its faults,
// the keeper that stands in for a dead engine, and the connections over which pages come. One a session.
// Threads: make_ready() to start() are the control channel's; each serving connection has one of its own.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/base/clock.h"
#include "engine/migration/keeper.h"
#include "engine/model/page_set.h"
#include "engine/model/vma.h"
#include "engine/transport/channel.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/postcopy.pb.h"
#include "engine/wire/record_reader.h"
#include "engine/wire/record_writer.h"
#include "uffd/fault_server.h"

namespace godwit::migration {

class PostcopyDestination {
 public:
  PostcopyDestination() = default;
  PostcopyDestination(const PostcopyDestination&) = delete;
  PostcopyDestination& operator=(const PostcopyDestination&) = delete;
  /// While pages are missing, the keeper takes over.
  ~PostcopyDestination();

  // ---- before the process runs
  [[nodiscard]] bool is_ready() const { return keeper_.has_value(); }
  /// `fresh`: made inside the process, no UFFDIO_API yet, non-blocking. Makes the keeper.
  Status make_ready(Fd fresh, pid_t pid);
  /// The list of an attempt that was given up does not count.
  void begin_list() { missing_.clear(); }
  /// Adds to what is missing; returns what it added, to be emptied. Errors: Corrupt: nothing was announced,
  /// or a page is not of private anonymous memory.
  Result<std::vector<AddressRange>> lack(const wire::Missing& message, const Layout& layout);
  [[nodiscard]] bool lacks() const { return !missing_.empty(); }
  /// Everything else is there, and what is missing is absent: from here on who touches it waits.
  /// Errors: TargetGone, System.
  Status start(const Layout& layout);

  // ---- a serving connection, on its thread
  /// Installs what comes until the source ends it. On the urgent one requests leave; `tell_lacking`: for a
  /// connection made after the resume, it begins with what is still missing. Errors: of the channel, Corrupt.
  Status serve(transport::Channel& channel, wire::RecordReader& reader, wire::RecordWriter& writer,
               bool urgent, bool tell_lacking);

  // ---- after the resume
  void runs() { running_since_ = monotonic_now(); }
  /// Until nothing is missing any more, and the source was told if it can be. False if `cancelled` first, and
  /// then the keeper takes over.
  bool await_resident(const std::function<bool()>& cancelled);

 private:
  Status take(const wire::Record& record, bool urgent);
  Status tell_missing(wire::RecordWriter& writer);
  Status ask_again(wire::RecordWriter& writer);
  void ask(RemoteAddr origin);
  void send_asks();
  Status attach(transport::Channel& channel, wire::RecordWriter& writer, bool tell_lacking);
  void detach(const transport::Channel& channel);
  [[nodiscard]] wire::Resident figures();
  void tell_resident();

  pid_t pid_ = 0;
  uffd::Uffd uffd_;
  std::optional<Keeper> keeper_;
  PageSet missing_;
  Nanos running_since_{};
  std::mutex pending_mutex_;
  std::vector<RemoteAddr> pending_;       ///< to be asked for
  std::mutex urgent_mutex_;               ///< of what follows
  wire::RecordWriter* asks_ = nullptr;    ///< to the source; none while there is no urgent connection
  transport::Channel* urgent_ = nullptr;  ///< the same connection
  bool resident_ = false;
  std::unique_ptr<uffd::FaultServer> owned_;
  std::atomic<uffd::FaultServer*> server_ = nullptr;  ///< once it is there
};

}  // namespace godwit::migration
