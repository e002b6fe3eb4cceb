// Descriptors that no room claims: what they are in words, why they stay, what to do. Pure.
#pragma once

#include "engine/state/finding.h"
#include "engine/state/open_file.h"

namespace godwit::state {

/// Always fatal. A kind without an entry in the table is named by its link.
Finding describe_unclaimed(const OpenFile& file);

}  // namespace godwit::state
