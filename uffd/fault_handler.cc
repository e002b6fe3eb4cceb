#include "uffd/fault_handler.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <csignal>

#include "engine/base/realtime.h"

namespace godwit::uffd {
namespace {

constexpr size_t kAtOnce = 16;
constexpr unsigned kLongestStream = 8;  ///< faults in a row; 64 pages at once then

}  // namespace

Result<std::unique_ptr<FaultHandler>> FaultHandler::start(const Uffd& uffd) {
  Fd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) return fail_errno("eventfd", "the handler of write faults");
  std::unique_ptr<FaultHandler> made(new FaultHandler(uffd, std::move(stop)));
  // It serves no signals: those belong to the thread that made it.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  made->thread_ = std::thread([handler = made.get()] { handler->serve(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return made;
}

FaultHandler::~FaultHandler() {
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

void FaultHandler::serve() {
  // It must not wait for its turn behind ordinary work, or the process waits with it; and an engine that
  // freezes the process at real-time priority waits for faults to end, too. For the same reason it sleeps
  // between faults: one that spins keeps the thread that it has just woken off their common processor
  // (measured: 11 us a fault, 20 to 60 with spinning).
  const RealtimeBoost boost;
  ::pthread_setname_np(::pthread_self(), "godwit-faults");
  std::array<pollfd, 2> waits{{{uffd_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  while ((waits[1].revents & POLLIN) == 0) {
    answer_some();
    ::poll(waits.data(), waits.size(), -1);
  }
}

void FaultHandler::answer_some() {
  std::array<uffd_msg, kAtOnce> faults;
  const Result<size_t> got = uffd_.read_faults(faults);
  // SAFETY: with an engine that cannot answer, the process would wait for ever; with a dead one it runs on.
  CHECK(got.ok());
  for (const uffd_msg& fault : std::span(faults).first(got.value())) {
    if (fault.event == UFFD_EVENT_PAGEFAULT) answer(RemoteAddr(page_floor(fault.arg.pagefault.address)));
  }
}

void FaultHandler::answer(RemoteAddr page) {
  answered_.fetch_add(1, std::memory_order_relaxed);
  const AddressRange single{page, page + kPageSize};
  const AddressRange wide = ahead_.load(std::memory_order_relaxed) ? widen(page) : single;
  if (wide != single && uffd_.unprotect(wide).ok()) return;
  if (uffd_.unprotect(single).ok()) return;
  // KERNEL: who waits for a page that another thread has unmapped meanwhile is woken by nobody else.
  (void)uffd_.wake(single);
}

/// From the third fault in a row on more is opened at once, twice as much each time. What is opened beside
/// the page counts as written.
AddressRange FaultHandler::widen(RemoteAddr page) {
  const auto follows = [&](const Stream& stream) { return stream.faults != 0 && stream.next == page; };
  auto stream = std::find_if(streams_.begin(), streams_.end(), follows);
  if (stream == streams_.end()) {
    stream = streams_.begin() + static_cast<std::ptrdiff_t>(oldest_++ % streams_.size());
    stream->faults = 0;
  }
  stream->faults = std::min(stream->faults + 1, kLongestStream);
  const uint64_t pages = stream->faults < 3 ? 1 : uint64_t{1} << (stream->faults - 2);
  stream->next = page + pages * kPageSize;
  return {page, stream->next};
}

}  // namespace godwit::uffd
