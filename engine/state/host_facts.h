// What never changes about a host and decides whether a process can live there: kernel, CPU, page size, vdso.
#pragma once

#include "engine/base/result.h"
#include "engine/state/finding.h"
#include "engine/wire/state.pb.h"

namespace godwit::state {

/// Of this host. About a millisecond. Any thread.
Result<wire::HostFacts> collect_host_facts();

/// What speaks against moving a process from `source` to `destination`. Pure.
Findings compare_hosts(const wire::HostFacts& source, const wire::HostFacts& destination);

/// The CPUID leaves whose bits programs decide by.
constexpr uint32_t kXsaveLeaf = 0xd;

}  // namespace godwit::state
