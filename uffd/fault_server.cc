#include "uffd/fault_server.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <csignal>

#include "engine/base/helper_pool.h"
#include "engine/base/log.h"
#include "engine/base/realtime.h"

namespace godwit::uffd {

const uint64_t kFaultServerFeatures =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

namespace {

constexpr size_t kAtOnce = 16;
constexpr size_t kChunk = 32_KiB;  ///< put in under the lock; so long may a fault have to wait for it
constexpr Nanos kLookForDead = std::chrono::milliseconds(20);
constexpr Nanos kHot = std::chrono::microseconds(50);
constexpr Nanos kPatience = std::chrono::seconds(60);  ///< with a process that does not get to run
constexpr Nanos kStuck =
    std::chrono::milliseconds(100);  ///< EAGAIN for so long comes of more than a busy machine
constexpr uint64_t kLetThrough = 16;
constexpr size_t kMostWaits = size_t{1} << 20;  ///< that figures are kept of
constexpr unsigned kLongestStream = 8;          ///< faults in a row; 64 pages at once then
constexpr uint64_t kLowestMapping = 64_KiB;     ///< vm.mmap_min_addr: below, the kernel takes no range

alignas(kPageSize) constexpr std::array<std::byte, 64 * kPageSize> kZeros{};

class UrgentLock {
 public:
  explicit UrgentLock(FirstComeUrgent& gate) : gate_(gate) { gate_.lock_urgent(); }
  ~UrgentLock() { gate_.unlock(); }
  UrgentLock(const UrgentLock&) = delete;
  UrgentLock& operator=(const UrgentLock&) = delete;

 private:
  FirstComeUrgent& gate_;
};

}  // namespace

void FirstComeUrgent::lock_urgent() {
  ++urgent_;
  mutex_.lock();
  --urgent_;
}

void FirstComeUrgent::lock_bulk() {
  for (;;) {
    while (urgent_.load() > 0) ::sched_yield();
    mutex_.lock();
    if (urgent_.load() == 0) return;
    mutex_.unlock();
  }
}

FaultServer::FaultServer(Uffd uffd, PageSet missing, Ask ask, Keep keep, Fd stop)
    : ask_(std::move(ask)), keep_(std::move(keep)), stop_(std::move(stop)) {
  spaces_.push_back({std::move(uffd), MissingMap(std::move(missing)), {}, false, {}});
}

Result<std::unique_ptr<FaultServer>> FaultServer::start(Uffd uffd, PageSet missing, Ask ask, Keep keep) {
  Fd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) return fail_errno("eventfd", "the server of missing pages");
  std::unique_ptr<FaultServer> made(
      new FaultServer(std::move(uffd), std::move(missing), std::move(ask), std::move(keep), std::move(stop)));
  made->note_if_resident();
  // It serves no signals: those belong to the thread that made it.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  made->thread_ = std::thread([server = made.get()] { server->serve(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return made;
}

FaultServer::~FaultServer() {
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

// ---- the reader
// --------------------------------------------------------------------------------------------------------

void FaultServer::serve() {
  const RealtimeBoost boost;
  ::pthread_setname_np(::pthread_self(), "godwit-missing");
  pollfd stopped{stop_.get(), POLLIN, 0};
  while (::poll(&stopped, 1, 0) == 0) {
    std::vector<RemoteAddr> asks;
    bool again = false;
    {
      const UrgentLock lock(gate_);
      answer_all();
      asks.swap(asks_);
      again = !retries_.empty();
    }
    for (const RemoteAddr origin : asks) ask_(origin);
    wait(again);
  }
}

/// Only this thread adds and removes spaces, so it may look at the list without the lock. With processors to
/// spare it spins a while after each fault; else that would keep from its processor whom it has just woken.
void FaultServer::wait(bool again) {
  std::vector<pollfd> waits{{stop_.get(), POLLIN, 0}};
  for (const Space& space : spaces_) waits.push_back({space.uffd.get(), POLLIN, 0});
  const auto poll_for = [&](Nanos time) {
    const timespec limit = to_timespec(time);
    return ::ppoll(waits.data(), waits.size(), &limit, nullptr);
  };
  if (again) {
    (void)poll_for(std::chrono::microseconds(20));
    return;
  }
  static const bool may_spin = processors() > 3;
  const Nanos hot_until = monotonic_now() + kHot;
  while (may_spin && monotonic_now() < hot_until) {
    if (poll_for({}) > 0) return;
  }
  (void)poll_for(kLookForDead);
}

void FaultServer::answer_all() {
  for (const Retry& retry : std::exchange(retries_, {})) {
    if (!retry.space->dead) take_fault(*retry.space, retry.page, retry.write, retry.since);
  }
  // A fork adds a space at the end, which is drained in its turn.
  for (Space& space : spaces_) drain(space);
  const Nanos now = monotonic_now();
  const bool look = now - buried_at_ >= kLookForDead;
  if (look) buried_at_ = now;
  bury_dead(look);
}

void FaultServer::drain(Space& space) {
  std::array<uffd_msg, kAtOnce> messages;
  while (!space.dead) {
    const Result<size_t> got = space.uffd.read_faults(messages);
    if (!got.ok()) {
      log_debug("{}", got.error().message());
      return;
    }
    for (const uffd_msg& message : std::span(messages).first(got.value())) take(space, message);
    if (got.value() < messages.size()) return;
  }
}

void FaultServer::take(Space& space, const uffd_msg& message) {
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      return take_fault(space, RemoteAddr(page_floor(message.arg.pagefault.address)),
                        (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0, monotonic_now());
    case UFFD_EVENT_FORK:
      return take_fork(space, static_cast<int>(message.arg.fork.ufd));
    case UFFD_EVENT_REMAP: {
      const auto& moved = message.arg.remap;
      const AddressRange from = range_of(moved.from, moved.from + moved.len);
      // Who waits there is woken, and faults where the page stands now.
      space.missing.move(from, RemoteAddr(moved.to));
      vacate(space, from);
      return close_again(space);
    }
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      return vacate(space, range_of(message.arg.remove.start, message.arg.remove.end));
    default:
      return;
  }
}

void FaultServer::take_fault(Space& space, RemoteAddr page, bool write, Nanos since) {
  if (!space.missing.contains(page)) return answer_zero(space, page, write, since);
  if (!space.waiting.emplace(page, monotonic_now()).second) return;  // asked for already
  ++figures_.faults;
  asks_.push_back(space.missing.origin_of(page));
}

/// What the parent lacks the child lacks, too. KERNEL: from before its page tables are copied until now, the
/// parent's could not be filled.
void FaultServer::take_fork(Space& parent, int child) {
  Space space{Uffd::take_over(Fd(child)), parent.missing, {}, false, {}};
  if (keep_ && !space.missing.empty()) keep_(child);
  spaces_.push_back(std::move(space));
}

/// Nothing of `range` is missing any more. Who waits for a page of it looks again.
void FaultServer::vacate(Space& space, AddressRange range) {
  space.missing.erase(range);
  space.waiting.erase(space.waiting.lower_bound(range.start), space.waiting.lower_bound(range.end));
  (void)space.uffd.wake(range);
  note_if_resident();
}

void FaultServer::answer_zero(Space& space, RemoteAddr page, bool write, Nanos since) {
  const AddressRange range = widen(space, page);
  const auto answer = [&](AddressRange part) {
    // A page that will be written is made at once; the zero page would cost a second fault.
    return write ? space.uffd.copy(part.start, std::span(kZeros).first(part.size()))
                 : space.uffd.zero_page(part);
  };
  Result<Filled> filled = answer(range);
  if (!filled.ok() && filled.error().err == ENOENT && range.pages() > 1)
    filled = answer({page, page + kPageSize});  // it crosses areas
  if (filled.ok() && filled->bytes > 0) {
    ++figures_.zero_faults;
    return;
  }
  if (!filled.ok() && filled.error().err == ESRCH) {
    space.dead = true;
    return;
  }
  if (!filled.ok() && filled.error().err == EAGAIN) {
    if (monotonic_now() - since > kStuck) return let_through(space, page);
    retries_.push_back({&space, page, write, since});
    return;
  }
  // It is there, or its area has gone: whoever waits looks again.
  (void)space.uffd.wake({page, page + kPageSize});
}

/// KERNEL: mremap that grows locked memory faults the new part in before it tells its event (6.18): the fault
/// waits for a page that the kernel does not take from us until the event was read. That part holds nothing,
/// so it need not be registered.
void FaultServer::let_through(Space& space, RemoteAddr page) {
  uint64_t pages = 1;
  while (pages < kLetThrough && !space.missing.contains(page + pages * kPageSize)) ++pages;
  if (!space.uffd.unregister_range({page, page + pages * kPageSize}).ok()) {
    pages = 1;
    (void)space.uffd.unregister_range({page, page + kPageSize});
  }
  space.open.push_back({page, page + pages * kPageSize});
  (void)space.uffd.wake({page, page + kPageSize});
}

/// Once the event has come: registered in part only, it would be two areas, which the program can see.
void FaultServer::close_again(Space& space) {
  for (const AddressRange& range : std::exchange(space.open, {}))
    (void)space.uffd.register_range(range, UFFDIO_REGISTER_MODE_MISSING);
}

/// From the third fault in a row on, more is made at once, twice as much each time.
AddressRange FaultServer::widen(const Space& space, RemoteAddr page) {
  const auto follows = [&](const Stream& stream) { return stream.faults != 0 && stream.next == page; };
  auto stream = std::find_if(streams_.begin(), streams_.end(), follows);
  if (stream == streams_.end()) {
    stream = streams_.begin() + static_cast<std::ptrdiff_t>(oldest_++ % streams_.size());
    stream->faults = 0;
  }
  stream->faults = std::min(stream->faults + 1, kLongestStream);
  uint64_t pages = stream->faults < 3 ? 1 : uint64_t{1} << (stream->faults - 2);
  for (uint64_t i = 1; i < pages; ++i) {
    if (space.missing.contains(page + i * kPageSize)) pages = i;
  }
  stream->next = page + pages * kPageSize;
  return {page, stream->next};
}

void FaultServer::bury_dead(bool look) {
  for (Space& space : spaces_) {
    if (look && !space.uffd.check_alive().ok()) space.dead = true;
  }
  const auto buried = std::erase_if(spaces_, [](const Space& space) { return space.dead; });
  if (buried == 0) return;
  retries_.clear();  // those of the living fault again when their turn comes: they are woken
  for (Space& space : spaces_) (void)space.uffd.wake(range_of(kLowestMapping, kUserSpaceEnd));
  note_if_resident();
}

// ---- what comes
// --------------------------------------------------------------------------------------------------------

Status FaultServer::install(AddressRange origin, std::span<const std::byte> bytes, bool urgent) {
  CHECK(bytes.size() == origin.size());
  for (RemoteAddr at = origin.start; at < origin.end;) {
    const AddressRange part = intersect(origin, {at, at + kChunk});
    const Nanos until = monotonic_now() + kPatience;
    for (;;) {
      urgent ? gate_.lock_urgent() : gate_.lock_bulk();
      Status put = install_chunk(part, bytes.subspan(part.start - origin.start, part.size()));
      gate_.unlock();
      if (put.ok()) break;
      if (put.error().err != EAGAIN || monotonic_now() > until) return put;
      // An event has to be read first, and the thread behind it to go on.
      const timespec nap{0, 20'000};
      ::nanosleep(&nap, nullptr);
    }
    at = part.end;
  }
  return {};
}

Status FaultServer::install_zeros(AddressRange origin, bool urgent) {
  for (RemoteAddr at = origin.start; at < origin.end; at = at + kZeros.size()) {
    const AddressRange part = intersect(origin, {at, at + kZeros.size()});
    TRY(install(part, std::span(kZeros).first(part.size()), urgent));
  }
  return {};
}

Status FaultServer::install_chunk(AddressRange origin, std::span<const std::byte> bytes) {
  uint64_t placed = 0;
  for (Space& space : spaces_) {
    if (space.dead) continue;
    for (const MissingMap::Place& place : space.missing.places_of(origin)) {
      TRY(fill(space, place.now, bytes.subspan(place.origin - origin.start, place.now.size())));
      placed += place.now.pages();
    }
  }
  const uint64_t pages = origin.pages();
  if (placed < pages) figures_.dropped += pages - placed;
  return {};
}

/// All of `now` is missing.
Status FaultServer::fill(Space& space, AddressRange now, std::span<const std::byte> bytes) {
  size_t most = bytes.size();
  const bool zero = bytes.data() >= kZeros.data() && bytes.data() < kZeros.data() + kZeros.size();
  for (RemoteAddr at = now.start; at < now.end;) {
    const size_t size = std::min(most, now.end - at);
    const auto part = bytes.subspan(at - now.start, size);
    Result<Filled> filled = zero ? space.uffd.zero_page({at, at + size}) : space.uffd.copy(at, part);
    if (!filled.ok() && filled.error().err == ESRCH) {
      space.dead = true;
      return {};
    }
    if (!filled.ok() && filled.error().err == ENOENT && most > kPageSize) {
      most = kPageSize;  // it crosses areas
      continue;
    }
    // One page of no registered area: it has gone.
    if (!filled.ok() && filled.error().err == ENOENT) filled = Filled{0, true};
    const Filled done = TRY(std::move(filled));
    if (done.bytes == 0) ++figures_.duplicates;
    const RemoteAddr end = at + std::max(done.bytes, kPageSize);
    arrived(space, {at, end});
    if (done.bytes == 0) (void)space.uffd.wake({at, end});
    at = end;
  }
  return {};
}

void FaultServer::arrived(Space& space, AddressRange now) {
  space.missing.erase(now);
  const auto first = space.waiting.lower_bound(now.start), last = space.waiting.lower_bound(now.end);
  for (auto at = first; at != last; ++at) {
    if (figures_.waits.size() < kMostWaits) figures_.waits.push_back(monotonic_now() - at->second);
  }
  space.waiting.erase(first, last);
  if (space.missing.empty()) note_if_resident();
}

// ---- how it stands
// -----------------------------------------------------------------------------------------------------

void FaultServer::note_if_resident() {
  const auto complete = [](const Space& space) { return space.dead || space.missing.empty(); };
  const bool all = std::all_of(spaces_.begin(), spaces_.end(), complete);
  const std::lock_guard lock(resident_mutex_);
  resident_ = all;
  if (all) resident_changed_.notify_all();
}

bool FaultServer::await_resident(Nanos patience) {
  std::unique_lock lock(resident_mutex_);
  return resident_changed_.wait_for(lock, patience, [this] { return resident_; });
}

std::vector<AddressRange> FaultServer::missing() {
  PageSet all;
  {
    const UrgentLock lock(gate_);
    for (const Space& space : spaces_) {
      if (space.dead) continue;
      for (const AddressRange& range : space.missing.origins()) all.insert(range);
    }
  }
  return all.runs();
}

std::vector<RemoteAddr> FaultServer::waited_for() {
  std::vector<RemoteAddr> origins;
  const UrgentLock lock(gate_);
  for (const Space& space : spaces_) {
    for (const auto& [page, since] : space.waiting) origins.push_back(space.missing.origin_of(page));
  }
  return origins;
}

FaultFigures FaultServer::figures() {
  const UrgentLock lock(gate_);
  return figures_;
}

}  // namespace godwit::uffd
