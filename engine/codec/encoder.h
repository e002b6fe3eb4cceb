// A page to bytes: the source's end of the codec, between the reader of pages and the writer of records. One
// encoder a channel, on that channel's thread.
//
// For each page the encoder picks the cheapest of: nothing at all (the destination holds these bytes), a zero
// record, a delta against what the destination holds, the whole page. It remembers pages in a PageCache under
// one invariant: **a cached page equals the destination's, once everything encoded so far has arrived in
// order**. So
//
//  - the bytes that are sent and the bytes that are remembered are the same private copy: a page that its
//  owner
//    still writes (`live`) is copied before anything looks at it;
//  - whoever changes the destination by other means tells the cache (discard), and whoever loses what was
//  encoded
//    (a cut connection, a cancelled round) clears it. A base that differs all the same is refused by the
//    decoder, thanks to the hash in front of each delta. An *unchanged* page has no such net: it relies on
//    discard().
//
// Which pages to remember (`keep`). A page that is held is always kept up to date. For one that is not:
//
//  - round 0 sends everything once, most of it never again: kIfRoom. It costs one copy a page until the
//  budget is
//    used up and nothing after. What fits in the budget has its delta from the second send on; in a larger
//    process the first pages hold places, and lose them to the pages of later rounds when they turn out cold.
//  - later rounds send what is being written, which is likely to be written again: kYes.
//  - the last pass, in the freeze: kNo. There is no later send.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "engine/base/result.h"
#include "engine/codec/page_cache.h"
#include "engine/codec/page_encoding.h"

namespace godwit::codec {

struct SourcePage {
  PageKey key;
  PageView bytes;
  KeepBase keep = KeepBase::kYes;
  bool live = false;  ///< somebody else may write `bytes` during the call
};

struct EncodedPage {
  PageEncoding encoding = PageEncoding::kInvalid;
  size_t size = 0;  ///< bytes of payload
  bool operator==(const EncodedPage&) const = default;
};

struct EncoderStats {
  uint64_t zero = 0;           ///< pages sent as a zero record
  uint64_t raw = 0;            ///< pages sent whole
  uint64_t xbzrle = 0;         ///< pages sent as a delta
  uint64_t unchanged = 0;      ///< pages not sent
  uint64_t overflow = 0;       ///< of `raw`: pages whose delta did not pay
  uint64_t payload_bytes = 0;  ///< bytes of payload of all of them
  uint64_t xbzrle_bytes = 0;   ///< of those, in deltas
};

class PageEncoder {
 public:
  /// `cache_budget` in bytes (PageCache::create); 0 for no deltas, and every page is then zero or raw.
  /// Errors: Usage, System.
  static Result<PageEncoder> create(size_t cache_budget);

  /// Writes the payload to the front of `out`, which has room for kMaxPayload bytes; behind the payload up to
  /// kMaxPayload bytes may be overwritten too. `page.bytes` may be the front of `out` itself (a page read
  /// straight to where it is sent from is not copied again if it goes raw) but may not overlap it otherwise.
  /// The cache counts the page as sent: the caller sends the payload, or clears the cache.
  EncodedPage encode(const SourcePage& page, std::span<std::byte> out);

  /// Once before each round after the first: pages that whole rounds do not touch make room for others.
  void begin_round();
  /// PageCache::discard.
  void discard(uint32_t space, AddressRange range);
  /// PageCache::clear.
  void forget_all();

  [[nodiscard]] const EncoderStats& stats() const { return stats_; }
  [[nodiscard]] CacheStats cache_stats() const { return cache_ ? cache_->stats() : CacheStats{}; }

 private:
  explicit PageEncoder(std::optional<PageCache> cache) : cache_(std::move(cache)) {}

  EncodedPage choose(const SourcePage& page, PageView bytes, std::span<std::byte> out);
  EncodedPage choose_against(PageBytes base, const SourcePage& page, PageView bytes,
                             std::span<std::byte> out);
  void count(EncodedPage encoded);

  std::optional<PageCache> cache_;
  EncoderStats stats_;
};

}  // namespace godwit::codec
