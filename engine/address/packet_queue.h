// One nfnetlink_queue: packets that an NFQUEUE rule diverts wait in the kernel, this end decides. Only
// numbers come up to user space, never the packets themselves.
//
// Place: below PacketHold, which owns the thread and the policy. Thread: not thread-safe, PacketHold's lock
// guards it. Crash: when the socket closes, the kernel drops what still waits (TCP sends it again), and a
// rule with
// --queue-bypass lets later packets through.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/base/result.h"

struct mnl_socket;

namespace godwit::address {

struct QueuedPacket {
  uint32_t id = 0;
  uint32_t in_device = 0;  ///< interface index it came in by; 1 is always the loopback
};

class PacketQueue {
 public:
  /// Binds a queue number that nobody listens on. Errors: Denied, Unsupported (no nfnetlink_queue), System.
  static Result<PacketQueue> bind_free();

  [[nodiscard]] uint16_t number() const { return number_; }
  /// Readable when packets wait; for poll only.
  [[nodiscard]] int fd() const;
  /// As many as wait and fit, in order of arrival; never blocks, 0 when none wait.
  Result<size_t> receive(std::span<QueuedPacket> packets);
  /// Lets every waiting packet up to and including `id` go on, in order of arrival. When this returns they
  /// have been delivered to their sockets or handed to the outgoing device.
  Status accept_through(uint32_t id);
  Status drop(uint32_t id);
  /// Packets that the kernel had to drop because the queue or this socket was full.
  [[nodiscard]] Result<uint64_t> dropped_by_kernel() const;

 private:
  struct Close {
    void operator()(mnl_socket* socket) const;
  };
  explicit PacketQueue(mnl_socket* socket) : socket_(socket) {}
  Result<int> configure(uint16_t number);
  Status verdict(int type, uint32_t id, uint32_t verdict);

  std::unique_ptr<mnl_socket, Close> socket_;
  uint16_t number_ = 0;
};

}  // namespace godwit::address
