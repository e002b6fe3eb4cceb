// A kernel is one loop over 64-byte blocks: compare, store the block's 64 bits, count. What is left of the
// last block goes byte by byte. The three kernels differ in nothing but how a block is compared.
#include "engine/codec/diff_mask.h"

#include <bit>
#include <cstring>
#include <vector>

#include "engine/codec/intrinsics.h"

namespace godwit::codec {
namespace {

constexpr size_t kStep = 64;

// Takes the words of a mask in order. Always inlined, so that the population count becomes what the kernel
// around it may use.
struct Tally {
  DiffMask& mask;
  DiffCount count;
  uint64_t carry = 0;  // 1 if the byte before this word differs: a run that goes on is not a new one
  uint64_t with_edges = 0;

  [[gnu::always_inline]] inline void add(size_t index, uint64_t bits) {
    const uint64_t before = bits << 1 | carry;
    mask.words[index] = bits;
    count.bytes += static_cast<size_t>(__builtin_popcountll(bits));
    count.runs += static_cast<size_t>(__builtin_popcountll(bits & ~before));
    carry = bits >> 63;
    with_edges = (index % 64 == 0 ? 0 : with_edges) | uint64_t{bits != before} << index % 64;
    mask.with_edges[index / 64] = with_edges;
  }
};

uint64_t tail_bits(const std::byte* a, const std::byte* b, size_t from, size_t size) {
  uint64_t bits = 0;
  for (size_t i = from; i < size; ++i) bits |= uint64_t{a[i] != b[i]} << (i - from);
  return bits;
}

[[gnu::always_inline]] inline void diff_tail(const std::byte* a, const std::byte* b, size_t from, size_t size,
                                             Tally& tally) {
  if (from != size) tally.add(from / kStep, tail_bits(a, b, from, size));
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
  Tally tally{mask, {}};
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    uint64_t bits = 0;
    for (size_t j = 0; j < kStep; j += 8) {
      const uint64_t changed = load_word(a + i + j) ^ load_word(b + i + j);
      if (changed != 0) bits |= nonzero_bytes(changed) << j;
    }
    tally.add(i / kStep, bits);
  }
  diff_tail(a, b, i, size, tally);
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
  Tally tally{mask, {}};
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    const uint64_t bits = ~(equal_32(a + i, b + i) | equal_32(a + i + 32, b + i + 32) << 32);
    tally.add(i / kStep, bits);
  }
  diff_tail(a, b, i, size, tally);
  return tally.count;
}

[[gnu::target("avx512f,avx512bw,popcnt")]] DiffCount diff_avx512(const std::byte* a, const std::byte* b,
                                                                 size_t size, DiffMask& mask) {
  Tally tally{mask, {}};
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    const uint64_t bits = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
    tally.add(i / kStep, bits);
  }
  diff_tail(a, b, i, size, tally);
  return tally.count;
}

// Counts eight words at a time, once all are there.
[[gnu::target("avx512f,avx512vpopcntdq")]] DiffCount count_vpopcnt(DiffMask& mask, size_t words) {
  __m512i bytes = _mm512_setzero_si512(), runs = bytes, before = bytes;
  for (size_t i = 0; i < words; i += 8) {
    const auto lanes = static_cast<__mmask8>(words - i < 8 ? (1u << (words - i)) - 1 : 0xffu);
    const __m512i bits = _mm512_maskz_loadu_epi64(lanes, mask.words.data() + i);
    const __m512i carry = _mm512_srli_epi64(_mm512_alignr_epi64(bits, before, 7), 63);
    const __m512i shifted = _mm512_or_si512(_mm512_slli_epi64(bits, 1), carry);
    const __m512i starts = _mm512_andnot_si512(shifted, bits);
    const uint64_t edges = _mm512_mask_cmpneq_epi64_mask(lanes, shifted, bits);
    mask.with_edges[i / 64] = (i % 64 == 0 ? 0 : mask.with_edges[i / 64]) | edges << i % 64;
    bytes = _mm512_add_epi64(bytes, _mm512_popcnt_epi64(bits));
    runs = _mm512_add_epi64(runs, _mm512_popcnt_epi64(starts));
    before = bits;
  }
  return {static_cast<size_t>(_mm512_reduce_add_epi64(bytes)),
          static_cast<size_t>(_mm512_reduce_add_epi64(runs))};
}

[[gnu::target("avx512f,avx512bw,avx512vpopcntdq")]] DiffCount diff_vpopcnt(const std::byte* a,
                                                                           const std::byte* b, size_t size,
                                                                           DiffMask& mask) {
  size_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    mask.words[i / kStep] = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
  }
  if (i != size) mask.words[i / kStep] = tail_bits(a, b, i, size);
  return count_vpopcnt(mask, (size + kStep - 1) / kStep);
}
#endif

std::vector<DiffKernel> usable_kernels() {
  std::vector<DiffKernel> kernels{{"words", diff_words}};
#if defined(__x86_64__)
  const bool popcnt = __builtin_cpu_supports("popcnt") != 0;
  if (popcnt && __builtin_cpu_supports("avx2") != 0) kernels.push_back({"avx2", diff_avx2});
  if (popcnt && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0) {
    kernels.push_back({"avx512", diff_avx512});
    if (__builtin_cpu_supports("avx512vpopcntdq") != 0) kernels.push_back({"vpopcnt", diff_vpopcnt});
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
  for (size_t group = 0; group * 64 * kStep < size; ++group) {
    for (uint64_t left = mask.with_edges[group]; left != 0; left &= left - 1) {
      const size_t index = group * 64 + static_cast<size_t>(std::countr_zero(left));
      const uint64_t bits = mask.words[index], carry = index == 0 ? 0 : mask.words[index - 1] >> 63;
      // Set where a byte and the one before it are of two kinds.
      for (uint64_t changes = bits ^ (bits << 1 | carry); changes != 0; changes &= changes - 1) {
        const auto at = static_cast<size_t>(std::countr_zero(changes));
        edges.at[count++] = static_cast<uint16_t>(index * kStep + at);
      }
    }
  }
  // Bits behind the block are 0, so only a run that ends with a full last word has no end yet.
  if (count % 2 != 0) edges.at[count++] = static_cast<uint16_t>(size);
  return count;
}

}  // namespace godwit::codec
