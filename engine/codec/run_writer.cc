// Two ways to the same bytes. The plain one takes run after run, and a run costs it some 4 ns however short
// it is: right for a page with few of them. A page in fragments has hundreds; there the AVX-512 one makes all
// lengths at once, and then 32 bytes of page at a time into what stands for them in the delta, whatever lies
// in them.
#include "engine/codec/run_writer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "engine/codec/intrinsics.h"

namespace godwit::codec {
namespace {

constexpr size_t kShortRun = 16;

// SAFETY: writes at most kMaxLengthBytes; the caller has made sure of the room.
size_t put_length(std::byte* out, size_t n) {
  if (n < 0x80) {
    out[0] = static_cast<std::byte>(n);
    return 1;
  }
  out[0] = static_cast<std::byte>((n & 0x7f) | 0x80);
  out[1] = static_cast<std::byte>(n >> 7);
  return 2;
}

// Most runs are a word or less, and a call of memcpy costs more than they do: where both sides have the room,
// copy a fixed 16 bytes, of which those behind the run are overwritten later or never looked at.
void put_run(std::byte* to, size_t to_room, const std::byte* from, size_t from_room, size_t n) {
  if (n <= kShortRun && to_room >= kShortRun && from_room >= kShortRun) {
    std::memcpy(to, from, kShortRun);
  } else {
    std::memcpy(to, from, n);
  }
}

size_t write_plain(const DiffMask& mask, DiffCount, std::span<const std::byte> page,
                   std::span<std::byte> out) {
  DiffEdges edges;
  const size_t count = list_edges(mask, page.size(), edges);
  size_t used = 0;
  size_t done = 0;  // bytes of the page that the delta covers so far
  for (size_t i = 0; i < count; i += 2) {
    const size_t start = edges.at[i], end = edges.at[i + 1], run = end - start;
    if (used + kMaxLengthBytes > out.size()) return kNoRoom;
    used += put_length(out.data() + used, start - done);
    if (used + kMaxLengthBytes > out.size()) return kNoRoom;
    used += put_length(out.data() + used, run);
    if (used + run > out.size()) return kNoRoom;
    put_run(out.data() + used, out.size() - used, page.data() + start, page.size() - start, run);
    used += run;
    done = end;
  }
  // The reference looks for room before it sees that only equal bytes are left.
  if (done < page.size() && used + kMaxLengthBytes > out.size()) return kNoRoom;
  return used;
}

#if defined(__x86_64__)
#define GODWIT_VBMI2 gnu::target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,popcnt")

constexpr size_t kVector = 64;
constexpr size_t kManyRuns = 32;      // from here on the vectors are faster
constexpr size_t kLongLength = 0x80;  // needs two bytes
constexpr uint64_t kEven = 0x5555555555555555;

// The edges of all runs behind a 0, and the lengths between: of equal bytes, of changed ones, of equal
// ones...
struct Lengths {
  std::array<uint16_t, kMaxBlock + kVector> edges;
  std::array<uint8_t, kMaxBlock + kVector> bytes;      // of those below kLongLength
  std::array<uint32_t, kMaxBlock / 32 + 1> long_ones;  // a bit each for the others
  size_t count;
};

// The bytes' positions in the block, those at the edges packed to the front.
[[GODWIT_VBMI2]] void find_edges(const DiffMask& mask, size_t size, Lengths& all) {
  alignas(kVector) static constexpr auto kPositions = [] {
    std::array<uint8_t, kVector> at{};
    for (size_t i = 0; i < kVector; ++i) at[i] = static_cast<uint8_t>(i);
    return at;
  }();
  const __m512i positions = _mm512_load_si512(kPositions.data());
  uint16_t* edge = all.edges.data();
  *edge++ = 0;
  uint64_t carry = 0;
  for (size_t base = 0; base < size; base += kVector) {
    const uint64_t bits = mask.words[base / kVector];
    const uint64_t changes = bits ^ (bits << 1 | carry);
    carry = bits >> 63;
    if (changes == 0) continue;
    const __m512i at = _mm512_maskz_compress_epi8(changes, positions);
    const __m512i block = _mm512_set1_epi16(static_cast<int16_t>(base));
    const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(at));
    const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(at, 1));
    _mm512_storeu_si512(edge, _mm512_add_epi16(low, block));
    const auto more = static_cast<size_t>(__builtin_popcountll(changes));
    if (more > 32) _mm512_storeu_si512(edge + 32, _mm512_add_epi16(high, block));
    edge += more;
  }
  all.count = static_cast<size_t>(edge - all.edges.data()) - 1;
  if (all.count % 2 != 0) all.edges[++all.count] = static_cast<uint16_t>(size);
}

[[GODWIT_VBMI2]] void measure_lengths(Lengths& all) {
  const __m512i limit = _mm512_set1_epi16(kLongLength);
  for (size_t i = 0; i < all.count; i += 32) {
    const __m512i length = _mm512_sub_epi16(_mm512_loadu_si512(all.edges.data() + i + 1),
                                            _mm512_loadu_si512(all.edges.data() + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(all.bytes.data() + i), _mm512_cvtepi16_epi8(length));
    all.long_ones[i / 32] = _mm512_cmpge_epu16_mask(length, limit);
  }
}

// The first pair at or behind pair `from` that has a long length, or the number of pairs.
size_t next_long_pair(const Lengths& all, size_t from) {
  for (size_t word = 2 * from / 32; word * 32 < all.count; ++word) {
    uint32_t bits = all.long_ones[word];
    if (word == 2 * from / 32) bits &= ~uint32_t{0} << 2 * from % 32;
    if (bits != 0) return std::min(word * 32 + static_cast<size_t>(std::countr_zero(bits)), all.count) / 2;
  }
  return all.count / 2;
}

// What a stretch of pairs writes to, and the lengths it takes.
struct Merger {
  std::byte* out;
  const uint8_t* length;

  // 32 bytes of page. Every byte has two lanes: a changed one stands in its first, and the last equal byte
  // before a run gives both to the two lengths of that run. The lanes in use, packed, are the delta.
  [[GODWIT_VBMI2]] void add(uint32_t changed, uint32_t before_run, const std::byte* page) {
    const uint64_t byte_lanes = _pdep_u64(changed, kEven);
    const uint64_t length_lanes = _pdep_u64(before_run, kEven) * 3;
    const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(changed, page));
    const __m512i lanes = _mm512_mask_expand_epi8(bytes, length_lanes, _mm512_loadu_si512(length));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(byte_lanes | length_lanes, lanes));
    out += __builtin_popcountll(byte_lanes | length_lanes);
    length += __builtin_popcountll(length_lanes);
  }
};

// The pairs [first, last), whose lengths are all short and of which the first has equal bytes in front.
[[GODWIT_VBMI2]] size_t merge_short(const DiffMask& mask, const Lengths& all, size_t first, size_t last,
                                    const std::byte* page, std::byte* out) {
  const size_t begin = all.edges[2 * first + 1] - size_t{1}, end = all.edges[2 * last];
  Merger merger{out, all.bytes.data() + 2 * first};
  for (size_t at = begin / 64 * 64; at < end; at += 64) {
    uint64_t changed = mask.words[at / 64];
    if (at < begin) changed &= ~uint64_t{0} << (begin - at);
    if (end - at < 64) changed &= ~(~uint64_t{0} << (end - at));
    const uint64_t next = end - at > 64 ? mask.words[at / 64 + 1] << 63 : 0;
    const uint64_t before_run = ~changed & (changed >> 1 | next);
    merger.add(static_cast<uint32_t>(changed), static_cast<uint32_t>(before_run), page + at);
    merger.add(static_cast<uint32_t>(changed >> 32), static_cast<uint32_t>(before_run >> 32), page + at + 32);
  }
  return static_cast<size_t>(merger.out - out);
}

[[GODWIT_VBMI2]] size_t write_vbmi2(const DiffMask& mask, DiffCount count, std::span<const std::byte> page,
                                    std::span<std::byte> out) {
  // SAFETY: with so much room nothing below has to look for it: a long length stands for 128 bytes of page at
  // least, and a store reaches a vector too far.
  const size_t most = count.bytes + 2 * count.runs + page.size() / kLongLength + kVector;
  if (count.runs < kManyRuns || most > out.size()) return write_plain(mask, count, page, out);
  Lengths all;
  find_edges(mask, page.size(), all);
  measure_lengths(all);
  size_t used = 0;
  for (size_t pair = 0; pair < all.count / 2;) {
    const size_t start = all.edges[2 * pair + 1], end = all.edges[2 * pair + 2];
    const size_t next_long = next_long_pair(all, pair);
    if (pair != next_long && start != 0) {
      used += merge_short(mask, all, pair, next_long, page.data(), out.data() + used);
      pair = next_long;
      continue;
    }
    used += put_length(out.data() + used, start - all.edges[2 * pair]);
    used += put_length(out.data() + used, end - start);
    put_run(out.data() + used, out.size() - used, page.data() + start, page.size() - start, end - start);
    used += end - start;
    ++pair;
  }
  return used;
}
#endif

std::vector<RunWriter> usable_writers() {
  std::vector<RunWriter> writers{{"plain", write_plain}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vbmi2") != 0 &&
      __builtin_cpu_supports("bmi2") != 0 && __builtin_cpu_supports("popcnt") != 0) {
    writers.push_back({"vbmi2", write_vbmi2});
  }
#endif
  return writers;
}

}  // namespace

std::span<const RunWriter> run_writers() {
  static const std::vector<RunWriter> writers = usable_writers();
  return writers;
}

size_t write_delta(const DiffMask& mask, DiffCount count, std::span<const std::byte> page,
                   std::span<std::byte> out) {
  static const auto fastest = run_writers().back().write;
  return fastest(mask, count, page, out);
}

}  // namespace godwit::codec
