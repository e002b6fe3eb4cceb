// Tells a network that an address lives at this host now: gratuitous ARP (IPv4) or an unsolicited neighbour
// advertisement (IPv6). Peers and bridges then send here instead of to the host that had the address before.
//
// Place: the destination of an address move, and the source when it takes its address back.
// Thread: any one at a time; the socket belongs to the network namespace of the thread that called create().
#pragma once

#include "engine/address/netlink.h"
#include "engine/base/fd.h"
#include "engine/base/result.h"

namespace godwit::address {

class Announcer {
 public:
  /// Opens the socket ahead of time. KERNEL: closing a packet socket waits for an RCU grace period, some tens
  /// of milliseconds, so an Announcer ought to outlive the hurry. Errors: Denied, System.
  static Result<Announcer> create(const IpAddress& ip, Link link);
  /// Sends both forms that receivers are known to heed (an ARP request and an ARP reply about oneself), or
  /// one advertisement with the override flag: tens of microseconds. The address must be configured by now.
  /// Does nothing on a device without an Ethernet address. Errors: Denied, System.
  [[nodiscard]] Status announce() const;

 private:
  Announcer(const IpAddress& ip, Link link, Fd socket)
      : ip_(ip), link_(std::move(link)), socket_(std::move(socket)) {}
  IpAddress ip_;
  Link link_;
  Fd socket_;
};

}  // namespace godwit::address
