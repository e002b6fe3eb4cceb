#include "engine/address/packet_hold.h"

#include <fmt/format.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "engine/base/fault_point.h"
#include "engine/base/log.h"

namespace godwit::address {
namespace {

constexpr uint32_t kLoopbackIndex = 1;  // KERNEL: LOOPBACK_IFINDEX, in every network namespace

}  // namespace

Status wait_for_packets_in_flight() {
  // KERNEL: MEMBARRIER_CMD_GLOBAL is synchronize_rcu(); the receive path of a packet, from the device up to
  // its socket, is one RCU read section, so those that began before are over when this returns.
  if (::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0) return {};
  Error error = fail_errno("membarrier(MEMBARRIER_CMD_GLOBAL)", "this host");
  error.kind = ErrorKind::kUnsupported;
  error.remedy = "a kernel with nohz_full CPUs refuses it; move the process without its address";
  return error;
}

Result<std::unique_ptr<PacketHold>> PacketHold::create() {
  PacketQueue queue = TRY(PacketQueue::bind_free());
  Fd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop.valid()) return fail_errno("eventfd", "packet hold");
  std::unique_ptr<PacketHold> hold(new PacketHold(std::move(queue), std::move(stop)));
  hold->thread_ = std::thread([raw = hold.get()] { raw->serve(); });
  pthread_setname_np(hold->thread_.native_handle(), "gw-packets");
  return hold;
}

PacketHold::~PacketHold() {
  if (const Status disarmed = disarm(); !disarmed.ok())
    log_debug("packet hold: {}", disarmed.error().message());
  const uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof(one)) != sizeof(one))
    log_debug("packet hold: the stop event was refused");
  if (thread_.joinable()) thread_.join();
}

void PacketHold::remember(std::span<const QueuedPacket> packets) {
  for (const QueuedPacket& packet : packets) {
    if (packet.in_device == kLoopbackIndex) held_from_loopback_.push_back(packet.id);
  }
  last_held_ = packets.back().id;
  any_held_ = true;
  stats_.held += packets.size();
}

/// Under the lock. One batch from the queue: remembered while holding, else sent on.
Result<size_t> PacketHold::take_batch() {
  std::array<QueuedPacket, 64> packets;
  const size_t count = TRY(queue_.receive(packets));
  if (count == 0) return count;
  if (holding_.load()) {
    remember(std::span(packets.data(), count));
    return count;
  }
  TRY(queue_.accept_through(packets[count - 1].id));
  stats_.passed += count;
  return count;
}

void PacketHold::serve() {
  std::array<pollfd, 2> waits = {pollfd{queue_.fd(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
  for (;;) {
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) return;
    if (waits[1].revents != 0) return;
    const std::lock_guard lock(mutex_);
    if (const Result<size_t> taken = take_batch(); !taken.ok())
      log_debug("packet hold: {}", taken.error().message());
  }
}

Status PacketHold::arm(std::vector<PacketRule> rules) {
  armed_ = true;
  for (PacketRule& rule : rules) {
    if (Status inserted = insert(rule); !inserted.ok()) {
      if (Status undone = disarm(); !undone.ok()) log_debug("packet hold: {}", undone.error().message());
      return inserted;
    }
    rules_.push_back(std::move(rule));
    TRY(fault_point("address.rule"));
  }
  return wait_for_packets_in_flight();
}

Status PacketHold::hold() {
  // ORDER: first the flag, then the lock: the batch that was under way is either accepted in full (and
  // delivered, for a verdict delivers inside its system call) or not yet begun.
  holding_.store(true);
  const std::lock_guard lock(mutex_);
  return {};
}

Status PacketHold::release(ReleaseTo where) {
  const std::lock_guard lock(mutex_);
  if (!holding_.load()) return {};
  while (TRY(take_batch()) > 0) {
  }
  if (where == ReleaseTo::kNetwork) {
    for (const uint32_t id : held_from_loopback_) TRY(queue_.drop(id));
    stats_.dropped_loopback += held_from_loopback_.size();
  }
  held_from_loopback_.clear();
  if (any_held_) TRY(queue_.accept_through(last_held_));
  any_held_ = false;
  holding_.store(false);
  return {};
}

Status PacketHold::disarm() {
  if (!armed_) return {};
  Status result;
  // ORDER: the rule goes first, then what it had diverted until then; the other way round, packets would
  // enter a queue that nobody empties any more.
  while (!rules_.empty()) {
    if (Status removed = remove(rules_.back()); !removed.ok()) result = removed.take_error();
    rules_.pop_back();
  }
  TRY(release(ReleaseTo::kHost));
  TRY(wait_for_packets_in_flight());
  const std::lock_guard lock(mutex_);
  while (TRY(take_batch()) > 0) {
  }
  armed_ = false;
  return result;
}

PacketHoldStats PacketHold::stats() const {
  const std::lock_guard lock(mutex_);
  PacketHoldStats stats = stats_;
  if (const Result<uint64_t> dropped = queue_.dropped_by_kernel(); dropped.ok()) {
    stats.dropped_by_kernel = dropped.value();
  }
  return stats;
}

}  // namespace godwit::address
