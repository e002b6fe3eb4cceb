#include "engine/codec/xbzrle.h"

#include <fmt/format.h>

#include <cstring>

#include "engine/codec/diff_mask.h"
#include "engine/codec/run_writer.h"

namespace godwit::codec {
namespace {

// Copies that overlap inside the run, for of the page no byte behind it may change; a call of memcpy would
// cost more than most runs do. `n` is not 0.
void apply_run(std::byte* to, const std::byte* from, size_t n) {
  if (n > 16) {
    std::memcpy(to, from, n);
  } else if (n >= 8) {
    uint64_t head, tail;
    std::memcpy(&head, from, 8);
    std::memcpy(&tail, from + n - 8, 8);
    std::memcpy(to, &head, 8);
    std::memcpy(to + n - 8, &tail, 8);
  } else if (n >= 4) {
    uint32_t head, tail;
    std::memcpy(&head, from, 4);
    std::memcpy(&tail, from + n - 4, 4);
    std::memcpy(to, &head, 4);
    std::memcpy(to + n - 4, &tail, 4);
  } else {
    to[0] = from[0];
    to[n / 2] = from[n / 2];
    to[n - 1] = from[n - 1];
  }
}

Error corrupt(std::string_view rule, size_t at, size_t size) {
  return fail(ErrorKind::kCorrupt, fmt::format("decode an XBZRLE delta: {}", rule),
              fmt::format("byte {} of {}", at, size), "the stream is damaged, or the peer's encoder differs");
}

// Reads lengths out of a delta. `broken` names the rule that the input breaks.
struct DeltaReader {
  std::span<const std::byte> delta;
  size_t at = 0;
  const char* broken = nullptr;

  [[nodiscard]] bool at_end() const { return at == delta.size(); }
  bool refuse(const char* rule) {
    broken = rule;
    return false;
  }
  bool length(size_t& n) {
    if (at_end()) return refuse("it ends where a length must stand");
    n = std::to_integer<size_t>(delta[at]);
    if (n >= 0x80) {
      if (at + 1 == delta.size()) return refuse("it ends inside a length");
      const auto high = std::to_integer<size_t>(delta[at + 1]);
      if (high >= 0x80) return refuse("a length has more than two bytes");
      n = (n & 0x7f) | high << 7;
      ++at;
    }
    ++at;
    return true;
  }
};

// One pair: moves `offset` to the end of its run and the reader behind its bytes.
bool check_pair(DeltaReader& reader, size_t& offset, size_t page_size) {
  const size_t start = reader.at;
  size_t equal = 0, run = 0;
  if (!reader.length(equal)) return false;
  if (equal == 0 && start != 0) return reader.refuse("a run of no equal bytes that is not the first");
  if (equal > page_size - offset) return reader.refuse("equal bytes reach beyond the page");
  if (!reader.length(run)) return false;
  if (run == 0) return reader.refuse("a run of no changed bytes");
  if (run > page_size - offset - equal) return reader.refuse("changed bytes reach beyond the page");
  if (run > reader.delta.size() - reader.at) return reader.refuse("it ends inside a run of changed bytes");
  offset += equal + run;
  reader.at += run;
  return true;
}

// SAFETY: only after check_pair() has accepted every pair.
void apply_checked(std::span<const std::byte> delta, std::byte* page) {
  const std::byte* in = delta.data();
  const std::byte* const end = in + delta.size();
  const auto take_length = [&in] {
    auto n = std::to_integer<size_t>(*in++);
    if (n >= 0x80) n = (n & 0x7f) | std::to_integer<size_t>(*in++) << 7;
    return n;
  };
  while (in != end) {
    page += take_length();
    const size_t run = take_length();
    apply_run(page, in, run);
    page += run;
    in += run;
  }
}

}  // namespace

DeltaResult encode_xbzrle(std::span<const std::byte> old_bytes, std::span<const std::byte> new_bytes,
                          std::span<std::byte> out) {
  CHECK(old_bytes.size() == new_bytes.size() && new_bytes.size() <= kMaxBlock);
  const size_t size = new_bytes.size();
  if (size != 0 && out.size() < kMaxLengthBytes) return {DeltaOutcome::kOverflow, 0};
  DiffMask mask;
  const DiffCount count = diff(old_bytes.data(), new_bytes.data(), size, mask);
  if (count.bytes == 0) return {DeltaOutcome::kUnchanged, 0};
  // Each run costs its bytes and two lengths at least: a page in fragments is given up before its runs are
  // walked.
  if (count.bytes + 2 * count.runs > out.size() || count.bytes > kMaxLength)
    return {DeltaOutcome::kOverflow, 0};
  const size_t written = write_delta(mask, count, new_bytes, out);
  if (written == kNoRoom) return {DeltaOutcome::kOverflow, 0};
  return {DeltaOutcome::kEncoded, written};
}

Result<size_t> decode_xbzrle(std::span<const std::byte> delta, std::span<std::byte> page) {
  DeltaReader reader{delta};
  size_t offset = 0;
  while (!reader.at_end()) {
    if (!check_pair(reader, offset, page.size())) return corrupt(reader.broken, reader.at, delta.size());
  }
  apply_checked(delta, page.data());
  return offset;
}

}  // namespace godwit::codec
