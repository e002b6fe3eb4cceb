#include "engine/address/address_undo.h"

#include <fmt/format.h>

#include "engine/address/announce.h"
#include "engine/address/conntrack.h"
#include "engine/base/files.h"

namespace godwit::address {
namespace {

constexpr std::string_view kTitle = "godwit-address-undo 1";
using Words = std::vector<std::string_view>;

std::string to_hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

Result<KernelRecord> from_hex(std::string_view text) {
  if (text.size() % 2 != 0) return fail(ErrorKind::kCorrupt, "read hex bytes", "odd number of digits");
  KernelRecord bytes;
  for (size_t i = 0; i < text.size(); i += 2) {
    const auto value = parse_number(text.substr(i, 2), 16);
    if (!value) return fail(ErrorKind::kCorrupt, "read hex bytes", std::string(text.substr(i, 2)));
    bytes.push_back(static_cast<std::byte>(*value));
  }
  return bytes;
}

Error bad_line(std::string_view line, const char* why) {
  return fail(ErrorKind::kCorrupt, "read address undo", fmt::format("line \"{}\"", line), why);
}

Result<SysctlChange> parse_sysctl(std::string_view line, const Words& words) {
  if (words.size() != 4) return bad_line(line, "a setting has a path and two values");
  if (!words[1].starts_with("/proc/sys/net/") || words[1].find("..") != std::string_view::npos) {
    return bad_line(line, "only network settings are put back");
  }
  return SysctlChange{std::string(words[1]), std::string(words[2]), std::string(words[3])};
}

Result<PacketRule> parse_rule(std::string_view line, const Words& words) {
  if (words.size() < 6) return bad_line(line, "a rule has a tool, a table, a chain, a place and words");
  if (!is_rule_tool(words[1])) return bad_line(line, "this is no packet filter tool");
  if (words[4] != "first" && words[4] != "last") return bad_line(line, "a rule goes first or last");
  PacketRule rule{
      std::string(words[1]), std::string(words[2]), std::string(words[3]), words[4] == "first", {}};
  rule.specification.assign(words.begin() + 5, words.end());
  return rule;
}

Result<LeavingAddress> parse_leaving(std::string_view line, const Words& words) {
  if (words.size() != 7 || words[2] != "via")
    return bad_line(line, "an address has a gateway and two records");
  LeavingAddress leaving;
  leaving.service = TRY(ServiceAddress::parse(words[1]));
  leaving.gateway = TRY(IpAddress::parse(words[3]));
  const auto index = parse_number(words[4]);
  if (!index || *index == 0 || *index > INT32_MAX) return bad_line(line, "this is no interface index");
  leaving.route_index = static_cast<int>(*index);
  leaving.configured = TRY(parse_address_record(TRY(from_hex(words[5]))));
  if (words[6] != "-") leaving.local = TRY(parse_route_record(TRY(from_hex(words[6]))));
  const bool same = leaving.configured.ip == leaving.service.ip &&
                    leaving.gateway.family() == leaving.service.ip.family() &&
                    (!leaving.local || leaving.local->destination == leaving.service.ip);
  if (!same) return bad_line(line, "its records speak of another address");
  return leaving;
}

Status parse_line(std::string_view line, AddressUndo& undo) {
  const Words words = split(line, ' ');
  if (words.empty()) return {};
  if (words[0] == "sysctl") {
    undo.sysctls.push_back(TRY(parse_sysctl(line, words)));
  } else if (words[0] == "rule") {
    undo.rules.push_back(TRY(parse_rule(line, words)));
  } else if (words[0] == "leaving") {
    undo.leaving.push_back(TRY(parse_leaving(line, words)));
  } else if (words[0] == "claimed" && words.size() == 2) {
    undo.claimed.push_back(TRY(ServiceAddress::parse(words[1])));
  } else {
    return bad_line(line, "no such kind of fact");
  }
  return {};
}

/// Keeps the first failure of several steps that are all tried.
class FirstError {
 public:
  template <typename T>
  void note(Result<T> result) {
    if (!result.ok() && status_.ok()) status_ = result.take_error();
  }
  Status take() { return std::move(status_); }

 private:
  Status status_;
};

Status give_back(const LeavingAddress& leaving, Netlink& netlink) {
  TRY(netlink.restore_address(leaving.configured));
  if (leaving.local) TRY(netlink.restore_route(*leaving.local));
  // Peers may have heard from the destination that it has the address.
  const Announcer announcer =
      TRY(Announcer::create(leaving.service.ip, TRY(netlink.link(leaving.service.device))));
  return announcer.announce();
}

void put_back_host(const AddressUndo& what, Netlink& netlink, FirstError& errors) {
  for (const PacketRule& rule : what.rules) errors.note(remove(rule));
  for (const LeavingAddress& leaving : what.leaving) {
    errors.note(netlink.remove_route_via(leaving.service.ip, leaving.gateway, leaving.route_index));
  }
  // ORDER: the reverse of applying, for writing one setting may change others.
  for (auto change = what.sysctls.rbegin(); change != what.sysctls.rend(); ++change)
    errors.note(restore(*change));
}

}  // namespace

std::string AddressUndo::to_text() const {
  std::string text = fmt::format("{}\n", kTitle);
  for (const SysctlChange& s : sysctls) text += fmt::format("sysctl {} {} {}\n", s.path, s.before, s.during);
  for (const PacketRule& r : rules) {
    text += fmt::format("rule {} {} {} {} {}\n", r.tool, r.table, r.chain, r.first ? "first" : "last",
                        fmt::join(r.specification, " "));
  }
  for (const LeavingAddress& l : leaving) {
    text += fmt::format("leaving {} via {} {} {} {}\n", l.service.to_string(), l.gateway.to_string(),
                        l.route_index, to_hex(l.configured.record), l.local ? to_hex(l.local->record) : "-");
  }
  for (const ServiceAddress& c : claimed) text += fmt::format("claimed {}\n", c.to_string());
  return text;
}

Result<AddressUndo> AddressUndo::from_text(std::string_view text) {
  const std::vector<std::string_view> lines = split(text, '\n');
  if (lines.empty() || lines[0] != kTitle)
    return bad_line(lines.empty() ? "" : lines[0], "this is no such text");
  AddressUndo undo;
  for (size_t i = 1; i < lines.size(); ++i) TRY(parse_line(lines[i], undo));
  return undo;
}

Status undo_leaving(const AddressUndo& what, Netlink& netlink) {
  FirstError errors;
  // ORDER: backwards, so that an address which is the preferred source of another's route is back before it.
  for (auto it = what.leaving.rbegin(); it != what.leaving.rend(); ++it) errors.note(give_back(*it, netlink));
  return errors.take();
}

Status remove_leaving(const AddressUndo& what, Netlink& netlink) {
  FirstError errors;
  for (const LeavingAddress& leaving : what.leaving) {
    errors.note(netlink.remove_address(leaving.service.ip, leaving.configured.prefix_length,
                                       leaving.configured.index));
  }
  return errors.take();
}

Status undo(const AddressUndo& what) {
  Netlink netlink = TRY(Netlink::open());
  FirstError errors;
  errors.note(undo_leaving(what, netlink));
  for (const ServiceAddress& claimed : what.claimed) {
    Result<Link> link = netlink.link(claimed.device);
    if (!link.ok()) continue;  // gone, and the address with it
    errors.note(netlink.remove_address(claimed.ip, claimed.prefix_length, link->index));
  }
  put_back_host(what, netlink, errors);
  return errors.take();
}

Status depart(const AddressUndo& what) {
  Netlink netlink = TRY(Netlink::open());
  FirstError errors;
  errors.note(remove_leaving(what, netlink));
  for (const LeavingAddress& leaving : what.leaving) errors.note(forget_connections(leaving.service.ip));
  put_back_host(what, netlink, errors);
  return errors.take();
}

}  // namespace godwit::address
