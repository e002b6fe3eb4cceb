#include "engine/migration/inventory.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "engine/base/files.h"
#include "engine/migration/clock_sync.h"
#include "engine/migration/huge_pages.h"
#include "engine/migration/migrate.h"
#include "engine/state/file_facts.h"
#include "engine/state/host_facts.h"
#include "engine/state/house.h"
#include "engine/state/process_rooms.h"
#include "engine/state/regular_file.h"

namespace godwit::migration {
namespace {

Status add_process(wire::Tree& tree, const tracee::Process& process) {
  const tracee::Stat stat = TRY(process.stat());
  wire::ProcessNode& node = *tree.add_nodes();
  const std::string status = TRY(process.status(process.pid()));
  // The innermost of its pids is the one that the process knows itself by.
  for (const std::string_view pid : split(field(status, "NSpid:").value_or(""), '\t'))
    node.add_namespace_pids(static_cast<int>(parse_number(pid).value_or(0)));
  const int inner =
      node.namespace_pids_size() > 0 ? node.namespace_pids(node.namespace_pids_size() - 1) : process.pid();
  node.set_pid(inner);
  for (const pid_t tid : TRY(process.threads())) {
    auto own = state::inner_tid(process, tid);
    if (own.ok()) node.add_tids(own.value());
  }
  node.set_ppid(stat.ppid);
  node.set_comm(stat.comm);
  node.set_pgid(stat.pgrp);
  node.set_sid(stat.session);
  node.set_exe(TRY(read_link(process.path("exe"))));
  return {};
}

/// A file that the process may write changes under way: it has to be there, and its room compares it in the
/// freeze.
wire::FileFact written_file(const std::string& path) {
  wire::FileFact fact;
  fact.set_path(path);
  fact.set_mode(S_IFREG);
  return fact;
}

bool needs_file(const Vma& vma) {
  const bool file = vma.kind == VmaKind::kFilePrivate || vma.kind == VmaKind::kFileShared;
  return file && !vma.path.starts_with("/memfd:") && !vma.path.ends_with(" (deleted)");
}

/// Looks again while what is fatal may pass.
Result<state::Findings> settle(const std::function<Result<state::Findings>()>& look) {
  constexpr int kLooks = 20;
  constexpr timespec kPause{0, 10'000'000};
  // What a program opens or maps for a moment, and a child of a moment, passes; a host or a namespace not.
  const auto passes = [](const state::Finding& f) {
    constexpr std::string_view kPassing[] = {kFilesRoom, state::kRegularFileRoom, state::kChildren,
                                             state::kDescriptorsRoom, state::kAddressSpace};
    return !f.fatal || std::find(std::begin(kPassing), std::end(kPassing), f.room) != std::end(kPassing);
  };
  for (int looks = 1;; ++looks) {
    state::Findings findings = TRY(look());
    const bool may_pass = std::all_of(findings.begin(), findings.end(), passes);
    if (!state::any_fatal(findings) || !may_pass || looks == kLooks) return findings;
    ::nanosleep(&kPause, nullptr);
  }
}

Result<state::Findings> ask_findings(Link& link, const wire::Inventory& inventory) {
  TRY(link.control().write_message(wire::RecordType::kInventory, inventory));
  TRY(link.control().flush());
  const auto answer = TRY(wire::parse<wire::Findings>(TRY(link.await(wire::RecordType::kFindings))));
  state::Findings findings;
  for (const wire::Finding& f : answer.findings())
    findings.push_back({f.room(), f.subject(), f.what(), f.why(), f.remedy(), f.fatal()});
  return findings;
}

}  // namespace

Result<wire::Inventory> take_inventory(const tracee::Process& process) {
  const Layout layout = TRY(process.detailed_layout());
  const auto files = TRY(state::read_open_files(process));
  wire::Inventory inventory;
  *inventory.mutable_facts() = TRY(state::collect_host_facts());
  TRY(add_process(*inventory.mutable_tree(), process));
  std::set<std::string> mapped, paths;
  for (const Vma& vma : layout) {
    if (needs_file(vma)) mapped.insert(vma.path);
    if (vma.kind == VmaKind::kAnonymous)
      inventory.set_memory_bytes(inventory.memory_bytes() + vma.range.size());
  }
  inventory.set_huge_pages(TRY(count_huge_pages(process, layout, files)));
  for (const std::string& path : state::collect_paths(files)) paths.insert(path);
  paths.insert(mapped.begin(), mapped.end());
  for (const std::string& path : paths) {
    const bool is_mapped = mapped.count(path) != 0;
    auto fact = state::file_facts(path);
    if (!fact.ok() && fact.error().err == ENOENT && !is_mapped) continue;  // deleted since
    *inventory.add_files() = TRY(std::move(fact));
    inventory.mutable_files()->rbegin()->set_mapped(is_mapped);
  }
  for (const std::string& path : state::collect_written_paths(files)) {
    if (paths.count(path) == 0) *inventory.add_files() = written_file(path);
  }
  return inventory;
}

state::Intent intent_of(const std::vector<std::string>& move_addresses) {
  state::Intent intent;
  for (const std::string& address : move_addresses)
    intent.moved_addresses.push_back(address.substr(0, address.find('/')));
  return intent;
}

Result<state::Findings> check_here(const tracee::Process& process, const state::Intent& intent) {
  return settle([&]() -> Result<state::Findings> {
    const auto memory = TRY(tracee::Memory::open(process.pid()));
    const Layout layout = TRY(process.detailed_layout());
    const auto files = TRY(state::read_open_files(process));
    return state::check_all({process, memory, layout, files, intent, nullptr});
  });
}

Result<state::Findings> check_there(Link& link, const tracee::Process& process,
                                    const std::vector<std::string>& move_addresses) {
  return settle([&]() -> Result<state::Findings> {
    auto inventory = TRY(take_inventory(process));
    TRY(add_clock_offsets(link, process, inventory));
    inventory.set_addresses_move(!move_addresses.empty());
    for (const std::string& address : move_addresses) inventory.add_moved_addresses(address);
    return ask_findings(link, inventory);
  });
}

Status judge(const state::Findings& findings, const std::function<void(const state::Findings&)>& tell) {
  if (tell && !findings.empty()) tell(findings);
  for (const state::Finding& finding : findings) {
    if (finding.fatal)
      return fail(ErrorKind::kRefused, finding.what, finding.subject, finding.why + "; " + finding.remedy);
  }
  return {};
}

Result<state::Findings> check(pid_t pid, LinkOptions link_options,
                              const std::vector<std::string>& move_addresses) {
  const auto process = TRY(tracee::Process::open(pid));
  auto findings = TRY(check_here(process, intent_of(move_addresses)));
  if (link_options.destination.empty()) return findings;
  link_options.channels = 1;
  auto link = TRY(Link::connect(link_options));
  for (state::Finding& finding : TRY(check_there(*link, process, move_addresses)))
    findings.push_back(std::move(finding));
  return findings;
}

}  // namespace godwit::migration
