#include "engine/address/packet_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/address/run_tool.h"
#include "engine/base/files.h"

namespace godwit::address {
namespace {

// The system's own choice first, so that `iptables-save` shows an administrator what is there.
constexpr std::array<std::string_view, 3> kVariants = {"tables", "tables-legacy", "tables-nft"};

std::string tool_name(Family family, std::string_view variant) {
  return fmt::format("{}{}", family == Family::kInet ? "ip" : "ip6", variant);
}

/// An exact copy by another program would differ in the comment: remove() never takes a rule that is not
/// ours.
std::vector<std::string> specification(const IpAddress& ip, uint16_t queue, std::vector<std::string> rest) {
  std::vector<std::string> words = {"-d",      ip.to_string(), "-m",
                                    "comment", "--comment",    fmt::format("godwit-move-{}", queue)};
  words.insert(words.end(), rest.begin(), rest.end());
  return words;
}

PacketRule hold_rule(const std::string& tool, const IpAddress& ip, uint16_t queue) {
  // Appended: rules of the host that mark packets must keep their effect, and NFQUEUE ends the chain.
  return {
      tool, "mangle", "PREROUTING", false,
      specification(ip, queue, {"-j", "NFQUEUE", "--queue-num", std::to_string(queue), "--queue-bypass"})};
}

std::vector<std::string> command(const char* action, const PacketRule& rule) {
  std::vector<std::string> words = {"-w", "-t", rule.table, action, rule.chain};
  words.insert(words.end(), rule.specification.begin(), rule.specification.end());
  return words;
}

Error rule_error(const char* operation, const PacketRule& rule, const ToolRun& run) {
  return fail(ErrorKind::kSystem, operation,
              fmt::format("{} -t {} {}", rule.tool, rule.table, fmt::join(rule.specification, " ")),
              fmt::format("exit code {}: {}", run.exit_code, trim(run.output)));
}

Result<std::string> choose_tool(const IpAddress& ip, uint16_t queue) {
  std::string tried;
  for (const std::string_view variant : kVariants) {
    const std::string tool = tool_name(ip.family(), variant);
    if (find_tool(tool).empty()) continue;
    const PacketRule rule = hold_rule(tool, ip, queue);
    const ToolRun run = TRY(run_tool(tool, command("-A", rule), Network::kEmpty));
    if (run.exit_code == 0) return tool;
    tried += fmt::format("{}: {}; ", tool, trim(run.output));
  }
  return fail(ErrorKind::kUnsupported, "choose a tool for NFQUEUE rules", ip.to_string(),
              tried.empty() ? "install iptables" : tried + "the kernel needs xt_NFQUEUE and nfnetlink_queue");
}

/// Does the *filter section of an iptables-save text do anything to forwarded packets?
bool filters_forwarded(std::string_view saved) {
  bool in_filter = false;
  for (const std::string_view line : split(saved, '\n')) {
    if (line.starts_with('*')) in_filter = line == "*filter";
    if (!in_filter) continue;
    if (line.starts_with(":FORWARD") && !line.starts_with(":FORWARD ACCEPT")) return true;
    if (line.starts_with("-A FORWARD ")) return true;
  }
  return false;
}

/// The two kinds of xtables filter side by side, and a packet must please both.
Status plan_forward_rules(const IpAddress& ip, uint16_t queue, std::vector<PacketRule>& rules) {
  for (const std::string_view variant : {"tables-legacy", "tables-nft"}) {
    const std::string tool = tool_name(ip.family(), variant);
    if (find_tool(tool + "-save").empty()) continue;
    const ToolRun saved = TRY(run_tool(tool + "-save", {}));
    if (saved.exit_code != 0 || !filters_forwarded(saved.output)) continue;
    rules.push_back({tool, "filter", "FORWARD", true, specification(ip, queue, {"-j", "ACCEPT"})});
  }
  return {};
}

bool tracks_connections() {
  const auto count = read_file("/proc/sys/net/netfilter/nf_conntrack_count");
  return count.ok() && parse_number(trim(count.value())).value_or(0) > 0;
}

}  // namespace

bool is_rule_tool(std::string_view name) {
  return std::any_of(kVariants.begin(), kVariants.end(), [name](std::string_view variant) {
    return name == tool_name(Family::kInet, variant) || name == tool_name(Family::kInet6, variant);
  });
}

Result<std::vector<PacketRule>> plan_rules(std::span<const IpAddress> addresses, uint16_t queue) {
  std::vector<PacketRule> rules;
  for (const IpAddress& ip : addresses) {
    const std::string tool = TRY(choose_tool(ip, queue));
    if (tracks_connections()) {
      rules.push_back(
          {tool, "raw", "PREROUTING", true,
           specification(ip, queue,
                         {"-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", "CT", "--notrack"})});
    }
    TRY(plan_forward_rules(ip, queue, rules));
    rules.push_back(hold_rule(tool, ip, queue));
  }
  return rules;
}

Status insert(const PacketRule& rule) {
  const ToolRun run = TRY(run_tool(rule.tool, command(rule.first ? "-I" : "-A", rule)));
  if (run.exit_code != 0) return rule_error("insert rule", rule, run);
  return {};
}

Status remove(const PacketRule& rule) {
  // KERNEL: xtables answers 1 for "no such rule" and also for a table or chain that does not exist.
  const ToolRun found = TRY(run_tool(rule.tool, command("-C", rule)));
  if (found.exit_code == 1) return {};
  const ToolRun run = TRY(run_tool(rule.tool, command("-D", rule)));
  if (run.exit_code != 0) return rule_error("remove rule", rule, run);
  return {};
}

}  // namespace godwit::address
