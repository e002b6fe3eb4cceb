// Times as people read them.
#pragma once

#include <godwit/godwit.h>

namespace godwit::cli {

inline double to_ms(Nanos t) {
  return static_cast<double>(t.count()) / 1e6;
}

}  // namespace godwit::cli
