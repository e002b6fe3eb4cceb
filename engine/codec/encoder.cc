#include "engine/codec/encoder.h"

#include <array>
#include <cstring>

#include "engine/codec/xbzrle.h"
#include "engine/codec/zero_page.h"

namespace godwit::codec {
namespace {

// Above this a delta saves less on the wire than building and applying it costs. It bounds the delta with its
// hash.
constexpr size_t kMaxDeltaPayload = kPageSize / 8 * 7;

// Below this, replaying the delta on the base touches less memory than copying the page over it.
constexpr size_t kReplayLimit = 512;

void put_le32(std::byte* out, uint32_t value) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}

void copy_page(std::byte* to, PageView page) {
  if (to != page.data()) std::memcpy(to, page.data(), kPageSize);
}

// Keeps the cached base equal to the destination's page: `delta` has just led from the one to the other.
void advance_base(PageBytes base, std::span<const std::byte> delta, PageView page) {
  if (delta.size() > kReplayLimit) return copy_page(base.data(), page);
  CHECK(decode_xbzrle(delta, base).ok());
}

}  // namespace

Result<PageEncoder> PageEncoder::create(size_t cache_budget) {
  if (cache_budget == 0) return PageEncoder(std::nullopt);
  return PageEncoder(TRY(PageCache::create(cache_budget)));
}

EncodedPage PageEncoder::encode(const SourcePage& page, std::span<std::byte> out) {
  CHECK(out.size() >= kMaxPayload);
  PageView bytes = page.bytes;
  if (page.live) {
    // SAFETY: the owner may write while this copy runs, so it may be a mixture of two moments. That is as
    // good as either: the tracker reports the page again. From here on only the copy is looked at.
    copy_page(out.data(), bytes);
    bytes = PageView(out.data(), kPageSize);
  }
  const EncodedPage encoded = choose(page, bytes, out);
  count(encoded);
  return encoded;
}

EncodedPage PageEncoder::choose(const SourcePage& page, PageView bytes, std::span<std::byte> out) {
  if (cache_) {
    if (const auto base = cache_->lookup(page.key)) return choose_against(*base, page, bytes, out);
  }
  const bool zero = is_zero_page(bytes);
  // Round 0 meets many zero pages. As bases they are worth less than the pages with data that come behind
  // them.
  const bool keep = cache_ && !(zero && page.keep == KeepBase::kIfRoom);
  if (keep) cache_->insert(page.key, bytes, page.keep);
  if (zero) return {PageEncoding::kZero, 0};
  copy_page(out.data(), bytes);
  return {PageEncoding::kRaw, kPageSize};
}

EncodedPage PageEncoder::choose_against(PageBytes base, const SourcePage& page, PageView bytes,
                                        std::span<std::byte> out) {
  if (is_zero_page(bytes)) {
    if (is_zero_page(base)) return {PageEncoding::kUnchanged, 0};
    copy_page(base.data(), bytes);
    return {PageEncoding::kZero, 0};
  }
  // Where the page lies in `out` itself, the payload is built beside it first.
  const bool in_place = bytes.data() == out.data();
  std::array<std::byte, kMaxDeltaPayload> beside;
  const auto payload = in_place ? std::span<std::byte>(beside) : out.first(kMaxDeltaPayload);
  const DeltaResult delta = encode_xbzrle(base, bytes, payload.subspan(kBaseHashSize));
  if (delta.outcome == DeltaOutcome::kUnchanged) return {PageEncoding::kUnchanged, 0};
  if (delta.outcome == DeltaOutcome::kOverflow) {
    ++stats_.overflow;
    copy_page(base.data(), bytes);
    cache_->demote(page.key);
    copy_page(out.data(), bytes);
    return {PageEncoding::kRaw, kPageSize};
  }
  put_le32(payload.data(), base_hash(base));
  advance_base(base, payload.subspan(kBaseHashSize, delta.size), bytes);
  const size_t size = kBaseHashSize + delta.size;
  if (in_place) std::memcpy(out.data(), payload.data(), size);
  return {PageEncoding::kXbzrle, size};
}

void PageEncoder::count(EncodedPage encoded) {
  stats_.payload_bytes += encoded.size;
  switch (encoded.encoding) {
    case PageEncoding::kZero:
      ++stats_.zero;
      break;
    case PageEncoding::kRaw:
      ++stats_.raw;
      break;
    case PageEncoding::kUnchanged:
      ++stats_.unchanged;
      break;
    case PageEncoding::kXbzrle:
      ++stats_.xbzrle;
      stats_.xbzrle_bytes += encoded.size;
      break;
    case PageEncoding::kInvalid:
      CHECK(false);
  }
}

void PageEncoder::begin_round() {
  if (cache_) cache_->begin_round();
}

void PageEncoder::discard(uint32_t space, AddressRange range) {
  if (cache_) cache_->discard(space, range);
}

void PageEncoder::forget_all() {
  if (cache_) cache_->clear();
}

}  // namespace godwit::codec
