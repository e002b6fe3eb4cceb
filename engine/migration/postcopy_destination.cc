#include "engine/migration/postcopy_destination.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/base/fault_point.h"
#include "engine/base/log.h"
#include "engine/base/realtime.h"
#include "engine/base/warm_memory.h"
#include "engine/migration/carried.h"
#include "engine/migration/missing_message.h"
#include "engine/wire/page_batch_reader.h"

namespace godwit::migration {
namespace {

constexpr Nanos kLook = std::chrono::milliseconds(100);

uint64_t nanos(Nanos time) {
  return static_cast<uint64_t>(time.count());
}

}  // namespace

// ---- before the process runs
// -------------------------------------------------------------------------------------------

Status PostcopyDestination::make_ready(Fd fresh, pid_t pid) {
  pid_ = pid;
  uffd_ = TRY(uffd::Uffd::adopt(std::move(fresh), uffd::kFaultServerFeatures));
  keeper_.emplace(TRY(Keeper::start()));
  warm_memory();  // again: it is shared with a fork now
  return {};
}

PostcopyDestination::~PostcopyDestination() {
  if (keeper_ && server_ == nullptr) keeper_->dismiss();
}

Result<std::vector<AddressRange>> PostcopyDestination::lack(const wire::Missing& message,
                                                            const Layout& layout) {
  if (!is_ready())
    return fail(ErrorKind::kCorrupt, "note missing pages", "missing", "post-copy was not announced");
  std::vector<AddressRange> ranges = TRY(to_ranges(message));
  for (const AddressRange& range : ranges) {
    for (RemoteAddr at = range.start; at < range.end;) {
      const Vma* vma = find_vma(layout, at);
      if (vma == nullptr || !can_be_missing(*vma))
        return fail(ErrorKind::kCorrupt, "note missing pages", fmt::format("{}", range),
                    "they are not of private anonymous memory");
      at = vma->range.end;
    }
    missing_.insert(range);
  }
  return ranges;
}

/// KERNEL: all private anonymous areas, not only those that lack something: an area that is registered never
/// merges with one that is not, and the process may rely on that in mremap.
Status PostcopyDestination::start(const Layout& layout) {
  for (const Vma& vma : layout) {
    if (vma.kind != VmaKind::kAnonymous || vma.shared || vma.huge_page != 0) continue;
    Status put = uffd_.register_range(vma.range, UFFDIO_REGISTER_MODE_MISSING);
    const bool needed = !missing_.runs_in(vma.range).empty();
    if (!put.ok() && (needed || put.error().kind != ErrorKind::kUnsupported)) return put;
  }
  // ORDER: before the process may run.
  TRY(keeper_->keep(uffd_.get()));
  TRY(keeper_->guard(TRY(PidFd::open(pid_))));
  owned_ = TRY(uffd::FaultServer::start(
      std::move(uffd_), missing_, [this](RemoteAddr origin) { ask(origin); },
      [this](int child) {
        if (Status kept = keeper_->keep(child); !kept.ok()) log_debug("{}", kept.error().message());
      }));
  server_ = owned_.get();
  return {};
}

// ---- the serving connections
// -------------------------------------------------------------------------------------------

/// On the server's thread, which may not wait: whoever has the connection sends it.
void PostcopyDestination::ask(RemoteAddr origin) {
  {
    const std::lock_guard lock(pending_mutex_);
    pending_.push_back(origin);
  }
  send_asks();
}

/// ORDER: looked for once more after the connection was let go, or a request could be left behind.
void PostcopyDestination::send_asks() {
  const auto take_pending = [this] {
    const std::lock_guard lock(pending_mutex_);
    return std::exchange(pending_, {});
  };
  const auto nothing_pending = [this] {
    const std::lock_guard lock(pending_mutex_);
    return pending_.empty();
  };
  while (!nothing_pending()) {
    const std::unique_lock lock(urgent_mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    // Without a connection they are asked for when there is one again: somebody waits for each.
    Status asked;
    for (const RemoteAddr origin : take_pending()) {
      wire::PageRequest request;
      request.set_at(origin.value());
      if (asks_ != nullptr && asked.ok())
        asked = asks_->write_message(wire::RecordType::kPageRequest, request);
    }
    if (asks_ != nullptr && asked.ok()) asked = asks_->flush();
    if (!asked.ok()) asks_ = nullptr;
  }
}

Status PostcopyDestination::tell_missing(wire::RecordWriter& writer) {
  TRY(each_missing_message(server_.load()->missing(), [&](const wire::Missing& message) {
    return writer.write_message(wire::RecordType::kMissing, message);
  }));
  return writer.flush();
}

/// What was asked for over a connection that broke.
Status PostcopyDestination::ask_again(wire::RecordWriter& writer) {
  if (server_ == nullptr) return {};
  for (const RemoteAddr origin : server_.load()->waited_for()) {
    wire::PageRequest request;
    request.set_at(origin.value());
    TRY(writer.write_message(wire::RecordType::kPageRequest, request));
  }
  return writer.flush();
}

Status PostcopyDestination::attach(transport::Channel& channel, wire::RecordWriter& writer,
                                   bool tell_lacking) {
  const std::lock_guard lock(urgent_mutex_);
  if (urgent_ != nullptr) urgent_->cancel();  // its source has given it up
  urgent_ = &channel;
  asks_ = nullptr;
  if (tell_lacking) TRY(tell_missing(writer));
  TRY(ask_again(writer));
  if (resident_) {
    TRY(writer.write_message(wire::RecordType::kResident, figures()));
    TRY(writer.flush());
  }
  asks_ = &writer;
  return {};
}

void PostcopyDestination::detach(const transport::Channel& channel) {
  const std::lock_guard lock(urgent_mutex_);
  if (urgent_ != &channel) return;  // another one has come
  urgent_ = nullptr;
  asks_ = nullptr;
}

Status PostcopyDestination::serve(transport::Channel& channel, wire::RecordReader& reader,
                                  wire::RecordWriter& writer, bool urgent, bool tell_lacking) {
  Status taken;
  std::optional<RealtimeBoost> boost;
  if (urgent) {
    taken = attach(channel, writer, tell_lacking);
    send_asks();
    boost.emplace();
  }
  while (taken.ok()) {
    auto record = reader.next();
    if (record.ok() && record->type == wire::RecordType::kEnd) break;
    taken = record.ok() ? take(*record, urgent) : Status(record.take_error());
  }
  if (urgent) detach(channel);
  return taken;
}

Status PostcopyDestination::take(const wire::Record& record, bool urgent) {
  static thread_local wire::Unpacker unpacker;
  if (record.type == wire::RecordType::kPacked) return take(TRY(unpacker.unpack(record)), urgent);
  uffd::FaultServer* const server = server_;
  if (record.type != wire::RecordType::kPages || server == nullptr)
    return fail(ErrorKind::kCorrupt, "take missing pages", record.name(), "it has no place here");
  TRY(fault_point(urgent ? "urgent-pages" : "pushed-pages"));
  auto batch = TRY(wire::PageBatchReader::open(record));
  while (const auto entry = batch.next()) {
    if (entry->encoding == wire::PageEncoding::kRaw)
      TRY(server->install(entry->range(), entry->payload, urgent));
    else if (entry->encoding == wire::PageEncoding::kZero)
      TRY(server->install_zeros(entry->range(), urgent));
    else
      return fail(ErrorKind::kCorrupt, "take missing pages", record.name(), "nothing is there to be changed");
  }
  return {};
}

// ---- the end
// -----------------------------------------------------------------------------------------------------------

wire::Resident PostcopyDestination::figures() {
  uffd::FaultFigures found = server_.load()->figures();
  wire::Resident message;
  message.set_faults(found.faults);
  message.set_zero_faults(found.zero_faults);
  message.set_duplicates(found.duplicates);
  message.set_dropped(found.dropped);
  message.set_duration(nanos(monotonic_now() - running_since_));
  std::vector<Nanos>& waits = found.waits;
  if (waits.empty()) return message;
  std::sort(waits.begin(), waits.end());
  message.set_median(nanos(waits[waits.size() / 2]));
  message.set_p99(nanos(waits[waits.size() * 99 / 100]));
  message.set_longest(nanos(waits.back()));
  for (size_t i = 0; i < std::min<size_t>(3, waits.size()); ++i)
    message.add_worst(nanos(waits[waits.size() - 1 - i]));
  return message;
}

void PostcopyDestination::tell_resident() {
  const wire::Resident message = figures();
  const std::lock_guard lock(urgent_mutex_);
  resident_ = true;
  if (asks_ == nullptr) return;
  if (asks_->write_message(wire::RecordType::kResident, message).ok()) (void)asks_->flush();
}

bool PostcopyDestination::await_resident(const std::function<bool()>& cancelled) {
  while (!server_.load()->await_resident(kLook)) {
    if (cancelled()) return false;
  }
  tell_resident();
  // ORDER: nothing is missing, so the keeper's descriptors may close, and then ours: the areas are ordinary
  // ones again. Until then memory that was never touched still faults to us.
  keeper_->dismiss();
  return true;
}

}  // namespace godwit::migration
