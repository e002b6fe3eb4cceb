// Named places where a test may make the engine fail: GODWIT_FAULT=name@n[:kill|error|delay].
// The n-th time control passes the point (counted from 1), `kill` ends this engine with SIGKILL (the
// default), `error` makes fault_point() return an error, `delay` pauses it for 200 ms.
#pragma once

#include <string_view>

#include "engine/base/result.h"

namespace godwit {

/// Cheap when GODWIT_FAULT is unset. Thread-safe. Errors: System, operation "fault point", subject the name.
Status fault_point(std::string_view name);

}  // namespace godwit
