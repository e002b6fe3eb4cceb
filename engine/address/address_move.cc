#include "engine/address/address_move.h"

#include <fmt/format.h>
#include <sys/un.h>

#include <algorithm>

#include "engine/address/move_plan.h"
#include "engine/base/fault_point.h"
#include "engine/base/log.h"

namespace godwit::address {
namespace {

constexpr std::chrono::milliseconds kNeighbourLimit{3000};  // the kernel asks three times, a second apart

/// KERNEL: an abstract socket name belongs to the network namespace and goes with the process that holds it.
Result<Fd> lock_moves() {
  Fd lock(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!lock.valid()) return fail_errno("open lock", "address move");
  constexpr std::string_view kName("\0godwit-address-move", 20);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::copy(kName.begin(), kName.end(), name.sun_path);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + kName.size());
  if (::bind(lock.get(), reinterpret_cast<const sockaddr*>(&name), size) == 0) return lock;
  if (errno != EADDRINUSE) return fail_errno("lock", "address move");
  return fail(ErrorKind::kRetry, "lock", "address move",
              "another move of an address is under way on this host");
}

std::vector<IpAddress> ips_of(const AddressUndo& undo) {
  std::vector<IpAddress> ips;
  for (const LeavingAddress& leaving : undo.leaving) ips.push_back(leaving.service.ip);
  return ips;
}

}  // namespace

Result<std::unique_ptr<AddressMoveSource>> AddressMoveSource::plan(const std::vector<Departure>& departures) {
  std::unique_ptr<AddressMoveSource> move(new AddressMoveSource);
  move->lock_ = TRY(lock_moves());
  move->netlink_ = std::make_unique<Netlink>(TRY(Netlink::open()));
  move->undo_.leaving = TRY(plan_leaving(departures, *move->netlink_));
  move->undo_.sysctls = TRY(plan_sysctls(move->undo_.leaving));
  move->hold_ = TRY(PacketHold::create());
  move->undo_.rules = TRY(plan_rules(ips_of(move->undo_), move->hold_->queue()));
  return move;
}

AddressMoveSource::~AddressMoveSource() {
  if (!hold_) return;
  const Status ended = stage_ < MoveStage::kCommitted ? abort() : finish();
  if (!ended.ok()) log_debug("address move: {}", ended.error().message());
}

/// Says whether the step `to` may be done now.
Status AddressMoveSource::advance(MoveStage to, const char* step) {
  if (static_cast<int>(stage_) + 1 == static_cast<int>(to)) return {};
  return fail(ErrorKind::kBug, step, fmt::format("address move at stage {}", static_cast<int>(stage_)),
              "the steps go in order");
}

Status AddressMoveSource::prepare() {
  if (stage_ == MoveStage::kPrepared) return {};
  TRY(advance(MoveStage::kPrepared, "prepare"));
  for (const SysctlChange& change : undo_.sysctls) {
    TRY(apply(change));
    TRY(fault_point("address.setting"));
  }
  for (const LeavingAddress& leaving : undo_.leaving) {
    // ORDER: the route before the handover. The local table is asked first, so nobody sees it until then.
    TRY(netlink_->add_route_via(leaving.service.ip, leaving.gateway, leaving.route_index));
    TRY(netlink_->resolve_neighbour(leaving.gateway, leaving.route_index, kNeighbourLimit));
    TRY(fault_point("address.route"));
  }
  stage_ = MoveStage::kPrepared;
  return {};
}

Status AddressMoveSource::arm() {
  if (stage_ == MoveStage::kArmed) return {};
  TRY(advance(MoveStage::kArmed, "arm"));
  TRY(hold_->arm(undo_.rules));
  stage_ = MoveStage::kArmed;
  return fault_point("address.armed");
}

Status AddressMoveSource::freeze() {
  if (stage_ == MoveStage::kFrozen) return {};
  TRY(advance(MoveStage::kFrozen, "freeze"));
  TRY(hold_->hold());
  stage_ = MoveStage::kFrozen;
  return fault_point("address.frozen");
}

Status AddressMoveSource::handover() {
  if (stage_ == MoveStage::kHandedOver) return {};
  TRY(advance(MoveStage::kHandedOver, "handover"));
  for (const LeavingAddress& leaving : undo_.leaving) {
    if (leaving.local) {
      TRY(netlink_->remove_route(*leaving.local));
    } else {
      TRY(netlink_->remove_address(leaving.service.ip, leaving.configured.prefix_length,
                                   leaving.configured.index));
    }
    TRY(fault_point("address.handover"));
  }
  stage_ = MoveStage::kHandedOver;
  return {};
}

Status AddressMoveSource::commit() {
  if (stage_ == MoveStage::kCommitted) return {};
  TRY(advance(MoveStage::kCommitted, "commit"));
  stage_ = MoveStage::kCommitted;
  TRY(hold_->release(ReleaseTo::kNetwork));
  TRY(fault_point("address.commit"));
  return remove_leaving(undo_, *netlink_);
}

Status AddressMoveSource::finish() {
  if (stage_ == MoveStage::kFinished) return {};
  TRY(advance(MoveStage::kFinished, "finish"));
  // ORDER: the queue is emptied while the way to the destination still stands.
  Status disarmed = hold_->disarm();
  TRY(fault_point("address.finish"));
  TRY(depart(undo_));
  TRY(std::move(disarmed));
  stage_ = MoveStage::kFinished;
  return {};
}

Status AddressMoveSource::abort() {
  if (stage_ == MoveStage::kAborted) return {};
  if (stage_ >= MoveStage::kCommitted) return advance(MoveStage::kAborted, "abort");
  // ORDER: the address is local again before its packets go on; what can fail at leisure comes after them.
  Status given_back = undo_leaving(undo_, *netlink_);
  Status released = hold_->release(ReleaseTo::kHost);
  Status disarmed = hold_->disarm();
  TRY(undo(undo_));
  TRY(std::move(given_back));
  TRY(std::move(released));
  TRY(std::move(disarmed));
  stage_ = MoveStage::kAborted;
  return {};
}

Result<AddressMoveDestination> AddressMoveDestination::plan(std::vector<ServiceAddress> services) {
  AddressMoveDestination move;
  move.netlink_ = std::make_unique<Netlink>(TRY(Netlink::open()));
  for (const ServiceAddress& service : services) {
    Link link = TRY(move.netlink_->link(service.device));
    if (!link.up) {
      return fail(ErrorKind::kRefused, "take over address", service.to_string(), "set its device up first");
    }
    for (const Route& route : TRY(move.netlink_->host_routes(service.ip))) {
      return fail(ErrorKind::kRefused, "take over address", service.to_string(),
                  fmt::format("this host has it already, or a route to it, at interface {}", route.index));
    }
    move.links_.push_back(link.index);
    move.announcers_.push_back(TRY(Announcer::create(service.ip, std::move(link))));
  }
  move.undo_.claimed = std::move(services);
  return move;
}

Status AddressMoveDestination::claim() {
  for (size_t i = 0; i < links_.size(); ++i) {
    Result<bool> added = netlink_->add_address(undo_.claimed[i], links_[i]);
    Status claimed = added.ok() ? fault_point("address.claim") : Status(added.take_error());
    if (claimed.ok()) continue;
    if (Status undone = abort(); !undone.ok()) log_debug("address move: {}", undone.error().message());
    return claimed;
  }
  return {};
}

Status AddressMoveDestination::announce() {
  for (const Announcer& announcer : announcers_) TRY(announcer.announce());
  return {};
}

Status AddressMoveDestination::abort() {
  return undo(undo_);
}

}  // namespace godwit::address
