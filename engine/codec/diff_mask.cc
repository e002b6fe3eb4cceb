// A kernel is one loop over 64-byte blocks: compare, store the block's 64 bits, count. What is left of the
// last block goes byte by byte. The three kernels differ in nothing but how a block is compared.
#include "engine/codec/diff_mask.h"

#include <bit>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace godwit::codec {
namespace {

constexpr size_t kStep = 64;

// Always inlined, so that the population count becomes what the kernel around it may use.
struct Tally {
  DiffCount count;
  uint64_t carry = 0;  // 1 if the byte before this word differs: a run that goes on is not a new one

  [[gnu::always_inline]] inline void add(uint64_t bits) {
    count.bytes += static_cast<size_t>(__builtin_popcountll(bits));
    count.runs += static_cast<size_t>(__builtin_popcountll(bits & ~(bits << 1 | carry)));
    carry = bits >> 63;
  }
};

void diff_tail(const std::byte* a, const std::byte* b, size_t from, size_t size, DiffMask& mask,
               Tally& tally) {
  if (from == size) return;
  uint64_t bits = 0;
  for (size_t i = from; i < size; ++i) bits |= uint64_t{a[i] != b[i]} << (i - from);
  mask.words[from / kStep] = bits;
  tally.add(bits);
}

uint64_t load_word(const std::byte* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// One bit for each byte of the word that is not zero.
uint64_t nonzero_bytes(uint64_t word) {
  constexpr uint64_t kLow7 = 0x7f7f7f7f7f7f7f7f;
  const uint64_t high_bits = ((((word & kLow7) + kLow7) | word) & ~kLow7) >> 7;
  return high_bits * 0x0102040810204080 >> 56;
}

DiffCount diff_words(const std::byte* a, const std::byte* b, size_t size, DiffMask& mask) {
  Tally tally;
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    uint64_t bits = 0;
    for (size_t j = 0; j < kStep; j += 8) {
      const uint64_t changed = load_word(a + i + j) ^ load_word(b + i + j);
      if (changed != 0) bits |= nonzero_bytes(changed) << j;
    }
    mask.words[i / kStep] = bits;
    tally.add(bits);
  }
  diff_tail(a, b, i, size, mask, tally);
  return tally.count;
}

#if defined(__x86_64__)
[[gnu::target("avx2,popcnt")]] inline uint64_t equal_32(const std::byte* a, const std::byte* b) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(x, y)));
}

[[gnu::target("avx2,popcnt")]] DiffCount diff_avx2(const std::byte* a, const std::byte* b, size_t size,
                                                   DiffMask& mask) {
  Tally tally;
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    const uint64_t bits = ~(equal_32(a + i, b + i) | equal_32(a + i + 32, b + i + 32) << 32);
    mask.words[i / kStep] = bits;
    tally.add(bits);
  }
  diff_tail(a, b, i, size, mask, tally);
  return tally.count;
}

[[gnu::target("avx512f,avx512bw,popcnt")]] DiffCount diff_avx512(const std::byte* a, const std::byte* b,
                                                                 size_t size, DiffMask& mask) {
  Tally tally;
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    const uint64_t bits = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
    mask.words[i / kStep] = bits;
    tally.add(bits);
  }
  diff_tail(a, b, i, size, mask, tally);
  return tally.count;
}
#endif

std::vector<DiffKernel> usable_kernels() {
  std::vector<DiffKernel> kernels{{"words", diff_words}};
#if defined(__x86_64__)
  const bool popcnt = __builtin_cpu_supports("popcnt") != 0;
  if (popcnt && __builtin_cpu_supports("avx2") != 0) kernels.push_back({"avx2", diff_avx2});
  if (popcnt && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0) {
    kernels.push_back({"avx512", diff_avx512});
  }
#endif
  return kernels;
}

}  // namespace

std::span<const DiffKernel> diff_kernels() {
  static const std::vector<DiffKernel> kernels = usable_kernels();
  return kernels;
}

DiffCount diff(const std::byte* a, const std::byte* b, size_t size, DiffMask& mask) {
  static const auto fastest = diff_kernels().back().diff;
  return fastest(a, b, size, mask);
}

size_t list_edges(const DiffMask& mask, size_t size, DiffEdges& edges) {
  size_t count = 0;
  uint64_t carry = 0;
  for (size_t base = 0; base < size; base += kStep) {
    const uint64_t bits = mask.words[base / kStep];
    uint64_t changes = bits ^ (bits << 1 | carry);  // set where a byte and the one before it are of two kinds
    carry = bits >> 63;
    for (; changes != 0; changes &= changes - 1) {
      edges.at[count++] = static_cast<uint16_t>(base + static_cast<size_t>(std::countr_zero(changes)));
    }
  }
  // Bits behind the block are 0, so only a run that ends with a full last word has no end yet.
  if (count % 2 != 0) edges.at[count++] = static_cast<uint16_t>(size);
  return count;
}

}  // namespace godwit::codec
