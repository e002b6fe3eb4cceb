// Holds the packets of an address while its owner is between two hosts.
//
//   create() ── arm() ──► passing ── hold() ──► holding ── release() ──► passing ── disarm() ──► off
//
// Passing: every packet takes the way through the queue and goes on at once. It costs each packet some
// microseconds, so arm shortly before the freeze; it is what makes hold() exact: after hold() has returned,
// no packet that arrived earlier is still on its way up to a socket, so a socket may be read out.
//
// Place: the source of an address move. Threads: the public functions belong to one thread; an own thread
// serves the queue. Everything acts on the network namespace of the thread that called create().
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/address/packet_queue.h"
#include "engine/address/packet_rules.h"
#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::address {

struct PacketHoldStats {
  uint64_t passed = 0;             ///< went on at once
  uint64_t held = 0;               ///< waited, over all holds
  uint64_t dropped_loopback = 0;   ///< see ReleaseTo::kNetwork
  uint64_t dropped_by_kernel = 0;  ///< queue or socket were full
};

enum class ReleaseTo : uint8_t {
  kHost,  ///< the address is (again) ours: all packets go up to the local sockets
  /// The address has left. What came in from the network is routed on. What this host sent to itself carries
  /// a route to the sockets that are gone and would be answered by a reset: it is dropped, and its sender
  /// tries again.
  kNetwork,
};

class PacketHold {
 public:
  /// Binds a free queue and starts the thread; no packet is touched yet. Errors: Denied, Unsupported, System.
  static Result<std::unique_ptr<PacketHold>> create();
  PacketHold(const PacketHold&) = delete;
  PacketHold& operator=(const PacketHold&) = delete;
  /// Disarms; errors are only logged.
  ~PacketHold();

  [[nodiscard]] uint16_t queue() const { return queue_.number(); }
  /// Inserts the rules (from plan_rules() with this queue) and waits until every packet that passed by before
  /// has been processed. Some milliseconds up to some tens. On error the rules are removed again.
  Status arm(std::vector<PacketRule> rules);
  /// Microseconds. Idempotent.
  Status hold();
  /// Lets the held packets go in order of arrival, then passes. Idempotent.
  Status release(ReleaseTo where);
  /// Removes the rules, then lets through what the queue still has: nothing is lost. Idempotent.
  Status disarm();
  [[nodiscard]] PacketHoldStats stats() const;

 private:
  PacketHold(PacketQueue queue, Fd stop) : queue_(std::move(queue)), stop_(std::move(stop)) {}
  void serve();
  Result<size_t> take_batch();
  void remember(std::span<const QueuedPacket> packets);

  PacketQueue queue_;
  Fd stop_;                        ///< eventfd, ends the thread
  std::vector<PacketRule> rules_;  ///< those inserted
  bool armed_ = false;
  std::atomic<bool> holding_ = false;
  mutable std::mutex mutex_;  ///< guards the queue and what follows
  uint32_t last_held_ = 0;
  bool any_held_ = false;
  std::vector<uint32_t> held_from_loopback_;
  PacketHoldStats stats_;
  std::thread thread_;
};

/// Returns when every network packet that was being processed when it was called is done with.
Status wait_for_packets_in_flight();

}  // namespace godwit::address
