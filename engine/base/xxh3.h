// XXH3 with the widest vectors that this processor has: two to six times as fast over a page as the plain
// calls, which the library builds for the least of all processors. Same values. Include this, never xxhash.h.
#pragma once

#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif
