// Pages of hugetlbfs that a process takes, and whether this host can give as many. Source: for the inventory.
// Destination: before the shell is made. Any thread.
#pragma once

#include <optional>
#include <vector>

#include "engine/state/finding.h"
#include "engine/state/open_file.h"
#include "engine/tracee/process.h"

namespace godwit::migration {

/// How many pages of 2 MiB a host needs for the mappings of `layout` and the objects behind them and `files`:
/// as the kernel reserves them, and where nothing is reserved (MAP_NORESERVE), those that are there now.
/// Errors: TargetGone, System.
Result<uint64_t> count_huge_pages(const tracee::Process& process, const Layout& layout,
                                  const std::vector<state::OpenFile>& files);

/// A finding if this host has fewer than `wanted` to spare.
std::optional<state::Finding> judge_huge_pages(uint64_t wanted);

}  // namespace godwit::migration
