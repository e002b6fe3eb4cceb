// Pages for the codec's tests: seeded, so that a failure repeats.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "engine/base/units.h"

namespace godwit::codec {

using TestPage = std::array<std::byte, kPageSize>;
using Random = std::mt19937_64;

inline size_t below(Random& random, size_t n) {
  return static_cast<size_t>(random() % n);
}

inline void fill_random(Random& random, std::span<std::byte> bytes) {
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
}

inline TestPage random_page(Random& random) {
  TestPage page;
  fill_random(random, page);
  return page;
}

inline TestPage filled_page(unsigned value) {
  TestPage page;
  page.fill(static_cast<std::byte>(value));
  return page;
}

/// Changes between 1 and `runs` runs of at most `length` bytes, each byte to another value. Runs may touch.
inline void scribble(Random& random, std::span<std::byte> bytes, size_t runs, size_t length) {
  for (size_t i = 1 + below(random, runs); i > 0; --i) {
    const size_t start = below(random, bytes.size());
    const size_t end = std::min(bytes.size(), start + 1 + below(random, length));
    for (size_t j = start; j < end; ++j) bytes[j] ^= static_cast<std::byte>(1 + below(random, 255));
  }
}

}  // namespace godwit::codec
