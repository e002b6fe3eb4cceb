// Moves service addresses from this host (the source) to another (the destination) while TCP connections
// live: nothing is lost, and nobody is answered with a reset.
//
//   source                                                     destination
//   plan      looks and writes down, changes nothing           plan
//   prepare   settings; a route that sleeps behind the address
//   arm       packets pass through the queue                   … sockets are rebuilt
//   freeze    packets wait; sockets may be read out
//   handover  the address is no longer local here              claim    address added
//   commit    waiting packets follow to the destination        … the process runs
//                                                              announce peers send straight to the
//                                                              destination
//   finish    all settings as before
//   abort     at any time before commit: all as before         abort
//
// How: an IPv4 address stays configured until commit; handover takes only its entry out of the local routing
// table, so that the host route underneath shows and every packet is routed on to the destination. Undoing
// that is one message, and `ip addr` never changed. IPv6 answers neighbour solicitations by the configured
// address alone, so there handover removes the address itself (docs/decisions/held-packets.md).
//
// Threads: each object belongs to one thread. Everything acts on the network namespace of the thread that
// calls, which must be the same throughout.
#pragma once

#include <memory>
#include <vector>

#include "engine/address/address_undo.h"
#include "engine/address/announce.h"
#include "engine/address/netlink.h"
#include "engine/address/packet_hold.h"
#include "engine/base/fd.h"

namespace godwit::address {

struct Departure {
  ServiceAddress service;
  IpAddress gateway;  ///< an own address of the destination, on a network it shares with this host
};

enum class MoveStage : uint8_t {
  kInvalid = 0,
  kPlanned,
  kPrepared,
  kArmed,
  kFrozen,
  kHandedOver,
  kCommitted,
  kFinished,
  kAborted,
};

class AddressMoveSource {
 public:
  /// Some tens of milliseconds; changes nothing. Errors: Usage (no such address, no way to the gateway),
  /// Refused (this host would lose its way to the gateway), Retry (another move is under way here),
  /// Unsupported, Denied.
  static Result<std::unique_ptr<AddressMoveSource>> plan(const std::vector<Departure>& departures);
  AddressMoveSource(const AddressMoveSource&) = delete;
  AddressMoveSource& operator=(const AddressMoveSource&) = delete;
  /// Aborts before commit, finishes after it; errors are only logged.
  ~AddressMoveSource();

  /// Give its text to a guardian before prepare().
  [[nodiscard]] const AddressUndo& undo_record() const { return undo_; }
  [[nodiscard]] MoveStage stage() const { return stage_; }
  [[nodiscard]] PacketHoldStats stats() const { return hold_->stats(); }

  // Each step may be repeated; a step out of order is an error of kind Bug that changes nothing.
  Status prepare();   ///< about a millisecond, more if the destination's hardware address must be asked for
  Status arm();       ///< some tens of milliseconds; from here each packet takes some microseconds more
  Status freeze();    ///< microseconds; afterwards no packet reaches a socket of these addresses
  Status handover();  ///< tens of microseconds an address
  /// The destination has claimed the addresses and serves their sockets. Microseconds, and some per held
  /// packet. Does not fail half-way: the packets go first, an error is about removing the address (finish()
  /// tries again).
  Status commit();
  /// After a while for peers that have not heard of the new host: no packet is routed on any more.
  /// Milliseconds.
  Status finish();
  /// Puts everything back, whichever stage before commit. Milliseconds; the packets go up to the sockets at
  /// once.
  Status abort();

 private:
  AddressMoveSource() = default;
  Status advance(MoveStage to, const char* step);

  AddressUndo undo_;
  MoveStage stage_ = MoveStage::kPlanned;
  Fd lock_;  ///< one move at a time in a network namespace: their saved settings would be each other's
  std::unique_ptr<Netlink> netlink_;
  std::unique_ptr<PacketHold> hold_;
};

class AddressMoveDestination {
 public:
  /// Checks that each device is there and up and that the address is not yet; changes nothing. Errors: Usage,
  /// Refused.
  static Result<AddressMoveDestination> plan(std::vector<ServiceAddress> services);

  [[nodiscard]] const AddressUndo& undo_record() const { return undo_; }
  /// Adds the addresses: tens of microseconds. Sockets must be complete: packets may arrive at once. On error
  /// nothing stays behind.
  Status claim();
  /// Draws the traffic here. ORDER: after the source's commit; announced earlier, packets that come straight
  /// here overtake those that were held, and TCP takes the disorder for loss. Until then (and should the
  /// announcement be lost) the source routes everything on. May be repeated.
  Status announce();
  Status abort();

 private:
  AddressMoveDestination() = default;

  AddressUndo undo_;
  std::vector<int> links_;             ///< interface index, one for each of undo_.claimed
  std::vector<Announcer> announcers_;  ///< likewise
  std::unique_ptr<Netlink> netlink_;
};

}  // namespace godwit::address
