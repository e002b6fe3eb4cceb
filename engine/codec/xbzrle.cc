#include "engine/codec/xbzrle.h"

#include <fmt/format.h>

#include <cstring>

#include "engine/codec/diff_mask.h"

namespace godwit::codec {
namespace {

constexpr size_t kMaxLengthBytes = 2;
constexpr size_t kMaxLength = (1 << 14) - 1;
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

// The same for a page, of which no byte behind the run may change: copies that overlap inside it. `n` is not
// 0.
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

// `edges` as list_edges() wrote them.
DeltaResult write_runs(std::span<const uint16_t> edges, std::span<const std::byte> page,
                       std::span<std::byte> out) {
  constexpr DeltaResult kNoRoom{DeltaOutcome::kOverflow, 0};
  size_t used = 0;
  size_t done = 0;  // bytes of the page that the delta covers so far
  for (size_t i = 0; i < edges.size(); i += 2) {
    const size_t start = edges[i], end = edges[i + 1], run = end - start;
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
  return {DeltaOutcome::kEncoded, used};
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
  DiffEdges edges;
  return write_runs(std::span(edges.at).first(list_edges(mask, size, edges)), new_bytes, out);
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
