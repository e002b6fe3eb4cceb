// Sets of missing pages as they travel: as runs, in records of bounded size.
#pragma once

#include <functional>
#include <vector>

#include "engine/base/result.h"
#include "engine/model/address_range.h"
#include "engine/wire/postcopy.pb.h"

namespace godwit::migration {

/// `ranges`: ascending, disjoint. At least one message, the last without `more`. Errors: those of `each`.
Status each_missing_message(const std::vector<AddressRange>& ranges,
                            const std::function<Status(const wire::Missing&)>& each);

/// Ascending, disjoint. Errors: Corrupt.
Result<std::vector<AddressRange>> to_ranges(const wire::Missing& message);

}  // namespace godwit::migration
