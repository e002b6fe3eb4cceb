// The vector instructions of x86-64. For the sources of this folder, each in functions for its own target.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
// gcc 12 takes the operands that its own intrinsics leave undefined for a mistake (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#endif
