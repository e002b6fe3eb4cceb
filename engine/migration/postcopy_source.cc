#include "engine/migration/postcopy_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "engine/base/fault_point.h"
#include "engine/base/realtime.h"
#include "engine/wire/layout_messages.h"

namespace godwit::migration {
namespace {

constexpr uint64_t kPiece = 1_MiB;    ///< of the queue; at most Lane::kChunk
constexpr uint64_t kGroup = 512_KiB;  ///< pushed at once: what a request may have to wait behind at the peer
constexpr uint64_t kAroundPages = 8;  ///< sent with a page that was asked for, at first
constexpr uint64_t kAroundMost = 64;  ///< where page after page is asked for
constexpr unsigned kLongestStream = 4;  ///< requests in a row
constexpr uint64_t kLongRun = 64_KiB;   ///< worth a call of its own to read

std::vector<AddressRange> in_pieces(const std::vector<AddressRange>& ranges) {
  std::vector<AddressRange> pieces;
  for (const AddressRange& range : ranges) {
    for (RemoteAddr at = range.start; at < range.end; at = pieces.back().end)
      pieces.push_back(intersect(range, {at, at + kPiece}));
  }
  return pieces;
}

uint64_t size_of(const std::vector<AddressRange>& ranges) {
  uint64_t size = 0;
  for (const AddressRange& range : ranges) size += range.size();
  return size;
}

}  // namespace

PostcopySource::PostcopySource(const tracee::Memory& memory, const std::vector<AddressRange>& missing,
                               const std::vector<AddressRange>& hot, Compression compress)
    : memory_(memory), compress_(compress) {
  for (const AddressRange& range : missing) missing_.insert(range);
  unsent_ = missing_;
  report_.missing_pages = unsent_pages_ = unsent_.size();
  plan(hot);
}

void PostcopySource::plan(const std::vector<AddressRange>& hot) {
  queue_ = in_pieces(hot);
  const std::vector<AddressRange> rest = in_pieces(unsent_.runs());
  queue_.insert(queue_.end(), rest.begin(), rest.end());
  next_ = 0;
  fault_.reset();
}

Status PostcopySource::lacks(const std::vector<AddressRange>& missing) {
  const std::lock_guard lock(mutex_);
  PageSet wanted;
  for (const AddressRange& range : missing) {
    if (size_of(missing_.runs_in(range)) != range.size())
      return fail(ErrorKind::kCorrupt, "go on serving pages", fmt::format("{}", range),
                  "the destination lacks what it had before");
    wanted.insert(range);
  }
  unsent_ = std::move(wanted);
  unsent_pages_ = unsent_.size();
  ++report_.reconnects;
  plan({});
  return {};
}

PostcopyReport PostcopySource::report() const {
  const std::lock_guard lock(mutex_);
  return report_;
}

Status PostcopySource::serve(ServingLink& link) {
  over_ = false;
  std::vector<std::thread> pushing;
  std::vector<Status> outcomes(link.pushing());
  for (size_t i = 0; i < link.pushing(); ++i) {
    pushing.emplace_back([&, i] {
      outcomes[i] = push(link.push(i), [&link, i] { return link.is_peer_behind(i); });
      // The reader of requests learns of it by the broken link.
      if (!outcomes[i].ok()) link.cancel();
    });
  }
  Status served = answer_requests(link);
  over_ = true;
  if (!served.ok()) link.cancel();
  for (std::thread& thread : pushing) thread.join();
  for (Status& outcome : outcomes) {
    // Once all has arrived, the peer hangs up on what comes twice.
    if (!served.ok() && !outcome.ok() && outcome.error().kind != ErrorKind::kCancelled)
      return std::move(outcome);
  }
  if (served.ok()) link.finish();
  return served;
}

// ---- what is asked for
// -------------------------------------------------------------------------------------------------

Status PostcopySource::answer_requests(ServingLink& link) {
  const RealtimeBoost boost;
  BatchSender sender(link.urgent(), Compression::kNone, {});
  const auto lane = TRY(Lane::create(sender, 0));
  lane->begin_round(false, true);
  for (;;) {
    const wire::Record record = TRY(link.requests().next());
    TRY(fault_point("request"));
    switch (record.type) {
      case wire::RecordType::kPageRequest: {
        const RemoteAddr page(TRY(wire::parse<wire::PageRequest>(record)).at());
        if (!missing_.contains(page) || page.value() % kPageSize != 0)
          return fail(ErrorKind::kCorrupt, "serve a page", fmt::format("{}", page),
                      "the destination asked for a page that it has");
        TRY(answer(*lane, page));
        break;
      }
      case wire::RecordType::kResident: {
        take_figures(TRY(wire::parse<wire::Resident>(record)));
        return {};
      }
      case wire::RecordType::kAbort:
        return wire::to_error(TRY(wire::parse<wire::Abort>(record)));
      default:
        return fail(ErrorKind::kCorrupt, "serve pages", record.name(), "it has no place here");
    }
  }
}

void PostcopySource::take_figures(const wire::Resident& told) {
  const auto time = [](uint64_t nanoseconds) { return Nanos(static_cast<int64_t>(nanoseconds)); };
  const std::lock_guard lock(mutex_);
  unsent_pages_ = 0;
  report_.faults = told.faults();
  report_.zero_faults = told.zero_faults();
  report_.duplicates = told.duplicates();
  report_.dropped = told.dropped();
  report_.median = time(told.median());
  report_.p99 = time(told.p99());
  report_.longest = time(told.longest());
  for (const uint64_t wait : told.worst()) report_.worst.push_back(time(wait));
  report_.resident = time(told.duration());
}

/// The page alone first: somebody waits for it. It may be under way already, behind others.
Status PostcopySource::answer(Lane& lane, RemoteAddr page) {
  const AddressRange single{page, page + kPageSize};
  std::vector<AddressRange> around;
  {
    const std::lock_guard lock(mutex_);
    ++report_.requests;
    std::vector<AddressRange> claimed;
    if (claim(single, 1, claimed) == 0) ++report_.already_sent;
    around = take_around(page);
    fault_ = around.empty() ? single.end : around.back().end;
    report_.prefetched += size_of(around) / kPageSize;
  }
  TRY(lane.send_again(memory_, {&single, 1}, true));
  TRY(lane.flush());
  if (around.empty()) return {};
  TRY(lane.send_again(memory_, around, true));
  return lane.flush();
}

/// With the lock. Behind the page what follows it, more and more where page after page is asked for; else
/// its neighbours on both sides.
std::vector<AddressRange> PostcopySource::take_around(RemoteAddr page) {
  const auto follows = [&](const Stream& stream) { return stream.requests != 0 && stream.next == page; };
  auto stream = std::find_if(streams_.begin(), streams_.end(), follows);
  if (stream == streams_.end()) {
    stream = streams_.begin() + static_cast<std::ptrdiff_t>(oldest_++ % streams_.size());
    stream->requests = 0;
  }
  const uint64_t pages = std::min(kAroundPages << stream->requests, kAroundMost);
  stream->requests = std::min(stream->requests + 1, kLongestStream);
  const uint64_t window = kAroundPages * kPageSize;
  const RemoteAddr start = stream->requests > 1 ? page : RemoteAddr(page.value() / window * window);
  const RemoteAddr end = start + pages * kPageSize;
  stream->next = end;
  std::vector<AddressRange> around;
  claim({start, end}, pages, around);
  return around;
}

// ---- what is pushed
// ----------------------------------------------------------------------------------------------------

/// With the lock. Moves up to `most` unsent pages of `range` into `into`; returns how many.
uint64_t PostcopySource::claim(AddressRange range, uint64_t most, std::vector<AddressRange>& into) {
  uint64_t pages = 0;
  for (AddressRange run : unsent_.runs_in(range)) {
    if (pages == most) break;
    run.end = std::min(run.end, run.start + (most - pages) * kPageSize);
    pages += run.pages();
    into.push_back(run);
    unsent_.erase(run);
  }
  unsent_pages_ -= pages;
  return pages;
}

std::vector<AddressRange> PostcopySource::take_group() {
  const std::lock_guard lock(mutex_);
  constexpr uint64_t kMost = kGroup / kPageSize;
  std::vector<AddressRange> group;
  uint64_t pages = 0;
  // Who has just asked for a page will need those behind it next.
  if (const auto fault = std::exchange(fault_, std::nullopt))
    pages = claim({*fault, *fault + kGroup}, kMost, group);
  while (pages < kMost && next_ < queue_.size()) {
    pages += claim(queue_[next_], kMost - pages, group);
    if (pages < kMost) ++next_;
  }
  return group;
}

Status PostcopySource::push(wire::RecordWriter& writer, const PeerIsBehind& is_peer_behind) {
  BatchSender sender(writer, compress_, is_peer_behind);
  const auto lane = TRY(Lane::create(sender, 0));
  lane->begin_round(true, false);
  return push_all(*lane);
}

Status PostcopySource::push_all(Lane& lane) {
  while (!over_) {
    TRY(fault_point("push"));
    const std::vector<AddressRange> group = take_group();
    if (group.empty()) return {};
    const bool long_runs = size_of(group) >= group.size() * kLongRun;
    if (long_runs) {
      for (const AddressRange& range : group) TRY(lane.send_first(memory_, range));
    } else {
      TRY(lane.send_again(memory_, group, true));
    }
    TRY(lane.flush());
  }
  return {};
}

}  // namespace godwit::migration
