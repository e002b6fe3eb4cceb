// Fuzzes what reads pages from a peer, and the encoder's bound. The first byte of the input picks what the
// rest is:
//   0  a delta                   decode_xbzrle() on a page
//   1  an encoding, a payload    decode_page()
//   2  a payload                 decode_page() as a delta against the right base
//   3  room, changes             encode_xbzrle() of a page with these changes, in so much room, by all
//   kernels
// A libFuzzer target; the unit tests replay its corpus.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "engine/codec/decoder.h"
#include "engine/codec/diff_mask.h"
#include "engine/codec/run_writer.h"
#include "engine/codec/xbzrle.h"

namespace godwit::codec {
namespace {

using Page = std::array<std::byte, kPageSize>;
using Input = std::span<const std::byte>;

void require(bool holds) {
  if (!holds) std::abort();
}

Page base_page() {
  Page page;
  for (size_t i = 0; i < kPageSize; ++i) page[i] = static_cast<std::byte>(i * 31 + i / 64);
  return page;
}

// What was decoded can be encoded and comes back the same.
void round_trip(const Page& before, const Page& after) {
  std::vector<std::byte> out(2 * kPageSize);
  const DeltaResult delta = encode_xbzrle(before, after, out);
  require((delta.outcome == DeltaOutcome::kUnchanged) == (before == after));
  if (delta.outcome == DeltaOutcome::kUnchanged) return;
  require(delta.outcome == DeltaOutcome::kEncoded);
  Page again = before;
  require(decode_xbzrle(std::span(out).first(delta.size), again).ok());
  require(again == after);
}

void fuzz_delta(Input input) {
  const Page before = base_page();
  Page page = before;
  const Result<size_t> end = decode_xbzrle(input, page);
  if (!end.ok()) return require(page == before && end.error().kind == ErrorKind::kCorrupt);
  require(end.value() <= kPageSize);
  require(std::equal(page.begin() + static_cast<ptrdiff_t>(end.value()), page.end(),
                     before.begin() + static_cast<ptrdiff_t>(end.value())));
  round_trip(before, page);
}

void fuzz_page(PageEncoding encoding, Input payload) {
  const Page before = base_page();
  Page page = before;
  const Status status = decode_page(encoding, payload, page);
  if (!status.ok()) require(page == before && status.error().kind == ErrorKind::kCorrupt);
}

void fuzz_page_with_base(Input input) {
  const uint32_t hash = base_hash(base_page());
  std::vector<std::byte> payload(kBaseHashSize);
  for (size_t i = 0; i < kBaseHashSize; ++i) payload[i] = static_cast<std::byte>(hash >> (8 * i));
  payload.insert(payload.end(), input.begin(), input.end());
  fuzz_page(PageEncoding::kXbzrle, payload);
}

// All ways to write the runs give the same bytes in the same room.
void compare_writers(const Page& before, const Page& after, size_t room) {
  DiffMask mask;
  const DiffCount count = diff(before.data(), after.data(), kPageSize, mask);
  for (const DiffKernel& kernel : diff_kernels()) {
    DiffMask other;
    require(kernel.diff(before.data(), after.data(), kPageSize, other) == count);
    require(std::equal(other.words.begin(), other.words.begin() + kPageSize / 64, mask.words.begin()));
    require(other.with_edges[0] == mask.with_edges[0]);
  }
  if (count.bytes == 0) return;
  std::vector<std::byte> expected(room), out(room);
  const size_t size = run_writers().front().write(mask, count, after, expected);
  for (const RunWriter& writer : run_writers()) {
    require(writer.write(mask, count, after, out) == size);
    require(size == kNoRoom ||
            std::equal(out.begin(), out.begin() + static_cast<ptrdiff_t>(size), expected.begin()));
  }
}

void fuzz_encoder(Input input) {
  if (input.size() < 2) return;
  const size_t room =
      (std::to_integer<size_t>(input[0]) << 8 | std::to_integer<size_t>(input[1])) % (kPageSize + 8);
  const Page before = base_page();
  Page after = before;
  size_t at = 0;
  for (size_t i = 2; i + 1 < input.size(); i += 2) {
    at = (at + std::to_integer<size_t>(input[i])) % kPageSize;
    after[at] ^= input[i + 1];
  }
  compare_writers(before, after, room);
  std::vector<std::byte> out(room);  // of exactly this size: the sanitizer sees a byte behind it
  const DeltaResult delta = encode_xbzrle(before, after, out);
  require(delta.size <= room);
  if (delta.outcome != DeltaOutcome::kEncoded) return;
  Page again = before;
  require(decode_xbzrle(std::span(out).first(delta.size), again).ok() && again == after);
}

}  // namespace
}  // namespace godwit::codec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace godwit::codec;
  const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data), size);
  if (input.empty()) return 0;
  switch (data[0] % 4) {
    case 0:
      fuzz_delta(input.subspan(1));
      break;
    case 1:
      if (size > 1) fuzz_page(static_cast<PageEncoding>(data[1]), input.subspan(2));
      break;
    case 2:
      fuzz_page_with_base(input.subspan(1));
      break;
    default:
      fuzz_encoder(input.subspan(1));
  }
  return 0;
}
