// epoll: the interest list, read from fdinfo. It can be added again only when every descriptor is in its
// final place, for an entry is a description *and* the number it was added under. The process itself adds: a
// signalfd in the list belongs to whoever adds it. Edge-triggered readiness is reported once more after the
// move, never lost.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#include "engine/base/files.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/epoll_info.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "epoll";
constexpr const char* kSubject = "an epoll instance of the process";
constexpr int kCallsPerBatch = 2000;  // 16 bytes of data each: well inside a runner's 256 KiB
/// fs/eventpoll.c: EP_PRIVATE_BITS. An entry with nothing else has fired and waits to be armed again
/// (EPOLLONESHOT).
constexpr uint32_t kPrivateBits = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE;

bool claims(const OpenFile& file) {
  return file.link == "anon_inode:[eventpoll]";
}

/// The number of a descriptor in `files` through which the entry's description can be reached now, or -1.
class TargetFinder {
 public:
  TargetFinder(pid_t pid, int epoll, const std::vector<OpenFile>& files)
      : pid_(pid), epoll_(epoll), files_(files) {
    for (const OpenFile& file : files)
      for (const Descriptor& descriptor : file.descriptors) by_number_[descriptor.number] = &file;
  }

  int find(const EpollEntry& entry) {
    const uint32_t repeat = seen_[entry.number]++;  // the same number can stand for several descriptions
    const auto at = by_number_.find(entry.number);
    if (at != by_number_.end() && is_target(*at->second, entry, repeat)) return entry.number;
    for (const OpenFile& file : files_)
      if (file.status.st_ino == entry.inode && same(file.number(), entry.number, repeat))
        return file.number();
    return -1;
  }

 private:
  /// A socket has one description for each inode; other kinds must be compared, which walks the whole list.
  bool is_target(const OpenFile& file, const EpollEntry& entry, uint32_t repeat) const {
    if (file.status.st_ino != entry.inode) return false;
    return S_ISSOCK(file.status.st_mode) || same(file.number(), entry.number, repeat);
  }
  bool same(int number, int entry, uint32_t repeat) const {
    kcmp_epoll_slot slot{static_cast<uint32_t>(epoll_), static_cast<uint32_t>(entry), repeat};
    return ::syscall(SYS_kcmp, pid_, pid_, KCMP_EPOLL_TFD, number, &slot) == 0;
  }

  pid_t pid_;
  int epoll_;
  const std::vector<OpenFile>& files_;
  std::map<int, const OpenFile*> by_number_;
  std::map<int, uint32_t> seen_;
};

/// The list and the descriptors are read one after the other while the process runs: a difference counts only
/// if it is still there.
bool still_closed(const CheckContext& ctx, const OpenFile& file, const EpollEntry& entry) {
  const auto info = read_file(ctx.process.path(fmt::format("fdinfo/{}", file.number())));
  if (!info.ok() ||
      ::faccessat(AT_FDCWD, ctx.process.path(fmt::format("fdinfo/{}", entry.number)).c_str(), F_OK, 0) == 0)
    return false;
  const auto now = parse_epoll_info(info.value());
  return now.ok() && std::any_of(now.value().begin(), now.value().end(),
                                 [&](const EpollEntry& other) { return other.number == entry.number; });
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  const auto entries = TRY(parse_epoll_info(file.fdinfo));
  TargetFinder finder(ctx.process.pid(), file.number(), ctx.files);
  for (const EpollEntry& entry : entries) {
    if (finder.find(entry) >= 0 || !still_closed(ctx, file, entry)) continue;
    findings.push_back({std::string(kRoom), file.subject(),
                        fmt::format("an interest in fd {}, which is closed", entry.number),
                        "another process keeps that file open, and it cannot be reached from this one",
                        "remove it from the epoll instance (EPOLL_CTL_DEL) before closing it", true});
  }
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  wire::EpollState state;
  // While the process runs the list is of no use: it is made in the freeze.
  if (ctx.frozen == nullptr) return state.SerializeAsString();
  const auto entries = TRY(parse_epoll_info(file.fdinfo));
  TargetFinder finder(ctx.pid(), file.number(), ctx.files);
  for (const EpollEntry& entry : entries) {
    const int through = finder.find(entry);
    if (through < 0)
      return fail(
          ErrorKind::kUnsupported, fmt::format("capture the interest in fd {}", entry.number), file.subject(),
          "another process keeps that file open: remove it from the epoll instance before closing it");
    auto* item = state.add_items();
    item->set_number(static_cast<uint32_t>(entry.number));
    item->set_events(entry.events);
    item->set_data(entry.data);
    item->set_through(static_cast<uint32_t>(through));
  }
  return state.SerializeAsString();
}

Result<int> prepare(BuildContext&, std::string_view) {
  const int fd = ::epoll_create1(EPOLL_CLOEXEC);
  if (fd < 0) return fail_errno("epoll_create1", kSubject);
  return fd;
}

Status finish(BuildContext&, int, std::string_view) {
  return {};
}

// ---- wire_up
// -----------------------------------------------------------------------------------------------------

bool is_disarmed(const wire::EpollItem& item) {
  return (item.events() & EPOLLONESHOT) != 0 && (item.events() & ~kPrivateBits) == 0;
}

/// Collects epoll_ctl calls and lets the process make them.
class Wiring {
 public:
  Wiring(BuildContext& ctx, int epoll) : ctx_(ctx), epoll_(epoll) {}

  Status control(int operation, const wire::EpollItem& item, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = item.data();
    batch_.call(SYS_epoll_ctl, {epoll_, operation, item.number(), batch_.put_value(event)},
                fmt::format("epoll_ctl on fd {}", item.number()));
    return batch_.calls().size() < kCallsPerBatch ? Status() : flush();
  }
  /// Fetches, and thereby disarms, what is ready.
  Status consume(int count) {
    const auto room = static_cast<size_t>(count) * sizeof(epoll_event);
    batch_.call(SYS_epoll_wait, {epoll_, batch_.reserve(room), count, 0}, "epoll_wait");
    return flush();
  }
  Status flush() {
    if (batch_.empty()) return {};
    Status ran = ctx_.run(batch_);
    batch_ = {};
    return ran;
  }

 private:
  BuildContext& ctx_;
  int epoll_;
  tracee::Batch batch_;
};

/// An entry whose description is reached by another number today: it gets its old number for the call.
Status add_under_old_number(BuildContext& ctx, int epoll, const wire::EpollItem& item) {
  const int number = static_cast<int>(item.number());
  const int flags = ::fcntl(number, F_GETFD);
  int occupant = -1;
  if (flags >= 0) {
    occupant = ::fcntl(number, F_DUPFD_CLOEXEC, ctx.parking_base);
    if (occupant < 0) return fail_errno("fcntl(F_DUPFD)", kSubject);
  }
  if (::dup3(static_cast<int>(item.through()), number, O_CLOEXEC) < 0)
    return fail_errno(fmt::format("dup3 to {}", number), kSubject);
  Wiring wiring(ctx, epoll);
  Status added = wiring.control(EPOLL_CTL_ADD, item, item.events());
  if (added.ok()) added = wiring.flush();
  if (occupant < 0) {
    ::close(number);
    return added;
  }
  const int put_back = ::dup3(occupant, number, (flags & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0);
  const int err = errno;
  ::close(occupant);
  if (put_back < 0) return fail_errno(fmt::format("dup3 to {}", number), kSubject, err);
  return added;
}

bool comes_first(const wire::EpollItem& item) {
  return is_disarmed(item) && item.number() == item.through();
}

// KERNEL: EPOLL_CTL_ADD and EPOLL_CTL_MOD always add EPOLLERR and EPOLLHUP, so that a disarmed entry cannot
// be added as such. It is added armed into the still empty list and fired at once by what is ready (most
// sockets can be written). fdinfo tells which did not fire: those stay armed, for errors alone.
Status add_disarmed(Wiring& wiring, int epoll, const wire::EpollState& state) {
  int count = 0;
  for (const auto& item : state.items()) {
    if (!comes_first(item)) continue;
    ++count;
    TRY(wiring.control(EPOLL_CTL_ADD, item, item.events() | EPOLLIN | EPOLLOUT));
  }
  if (count == 0) return {};
  TRY(wiring.flush());
  for (int left = count; left > 0; left -= kCallsPerBatch)
    TRY(wiring.consume(std::min(left, kCallsPerBatch)));
  const std::string info = TRY(read_file(fmt::format("/proc/thread-self/fdinfo/{}", epoll)));
  std::map<uint32_t, uint32_t> events;
  for (const EpollEntry& entry : TRY(parse_epoll_info(info)))
    events[static_cast<uint32_t>(entry.number)] = entry.events;
  for (const auto& item : state.items())
    if (comes_first(item) && (events[item.number()] & ~kPrivateBits) != 0)
      TRY(wiring.control(EPOLL_CTL_MOD, item, item.events()));
  return wiring.flush();
}

Status wire_up(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::EpollState>(kRoom, message));
  Wiring wiring(ctx, fd);
  TRY(add_disarmed(wiring, fd, state));
  for (const auto& item : state.items())
    if (item.number() == item.through() && !is_disarmed(item))
      TRY(wiring.control(EPOLL_CTL_ADD, item, item.events()));
  TRY(wiring.flush());
  for (const auto& item : state.items())
    if (item.number() != item.through()) TRY(add_under_old_number(ctx, fd, item));
  return {};
}

}  // namespace

DescriptorRoom epoll_room() {
  return {kRoom, claims, check, capture, prepare, finish, wire_up, nullptr};
}

}  // namespace godwit::state
