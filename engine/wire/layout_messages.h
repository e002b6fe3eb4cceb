// Between the values of model/ and the messages of state.proto. What comes from a message is checked here.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <vector>

#include "engine/base/result.h"
#include "engine/model/vma.h"
#include "engine/wire/state.pb.h"

namespace godwit::wire {

VmaMessage to_message(const Vma& vma);
RangeMessage to_message(AddressRange range);

/// Page aligned, not empty, below the end of user space, a known kind. Errors: Corrupt, subject the area's
/// range.
Result<Vma> to_vma(const VmaMessage& message);
/// Page aligned, not empty, below the end of user space. Errors: Corrupt.
Result<AddressRange> to_range(const RangeMessage& message);

/// All areas of a message, sorted and proven not to overlap. Errors: Corrupt.
Result<Layout> to_layout(const LayoutMessage& message);
Result<std::vector<AddressRange>> to_ranges(const google::protobuf::RepeatedPtrField<RangeMessage>& messages);

/// Errors travel as `abort` records and arrive with all that was known where they arose.
Abort to_message(const Error& error);
/// The peer's error as one of ours. A kind that this build does not know becomes System.
Error to_error(const Abort& message);

}  // namespace godwit::wire
