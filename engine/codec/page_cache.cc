#include "engine/codec/page_cache.h"

#include <fmt/format.h>

#include <cstring>

namespace godwit::codec {
namespace {

uint64_t tag_page(RemoteAddr address) {
  return (address.value() >> kPageShift) + 1;
}

// Neighbours in memory are neighbours in the cache: pages of one block of 1 GiB take one set after the other,
// blocks start at sets of their own. A contiguous working set fills all sets alike, and walking it in order
// walks the cache in order, which the memory system rewards: the encoder's whole path runs twice as fast as
// with a hash per page.
constexpr uint64_t kBlockPages = uint64_t{1} << (30 - kPageShift);

// The finalizer of MurmurHash3.
uint64_t mix(uint64_t h) {
  h = (h ^ h >> 33) * 0xff51afd7ed558ccd;
  h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53;
  return h ^ h >> 33;
}

}  // namespace

Result<PageCache> PageCache::create(size_t budget) {
  size_t sets = budget / kMinBudget;
  if (sets == 0) {
    return fail(ErrorKind::kUsage, "create a page cache", fmt::format("a budget of {} bytes", budget),
                fmt::format("give it at least {} bytes, or none at all", kMinBudget));
  }
  sets -= sets % 2 == 0 ? 1 : 0;  // odd, so that pages at a stride of a power of two do not share a few sets
  Mapping pages = TRY(Mapping::anonymous(sets * kWays * kPageSize));
  Mapping tags = TRY(Mapping::anonymous(sets * kWays * sizeof(Tag)));
  // KERNEL: with transparent huge pages a few scattered entries would commit the whole budget, and they make
  // the encoder no faster. Failure (a kernel without huge pages) means there is nothing to ask for.
  ::madvise(pages.data(), pages.size(), MADV_NOHUGEPAGE);
  return PageCache(std::move(pages), std::move(tags), sets);
}

// SAFETY: Tag is trivial and its all-zero state is a valid empty one: the fresh mapping is an array of them.
PageCache::Tag* PageCache::tags() const {
  return reinterpret_cast<Tag*>(tag_memory_.data());
}

PageCache::Tag* PageCache::set_of(PageKey key) const {
  CHECK(key.address.value() % kPageSize == 0);
  const uint64_t page = key.address.value() >> kPageShift;
  const uint64_t block = mix(page / kBlockPages ^ uint64_t{key.space} << 32);
  // The hash is halved so that the sum cannot wrap around.
  const auto set = static_cast<size_t>(((block >> 1) + page % kBlockPages) % sets_);
  return tags() + set * kWays;
}

PageCache::Tag* PageCache::find(PageKey key) const {
  Tag* const set = set_of(key);
  for (Tag* tag = set; tag != set + kWays; ++tag) {
    if (tag->page == tag_page(key.address) && tag->space == key.space) return tag;
  }
  return nullptr;
}

// All first ways, then all second ways, ...: the pages of neighbouring sets lie side by side.
PageBytes PageCache::page_of(const Tag* tag) const {
  const auto place = static_cast<size_t>(tag - tags());
  return PageBytes(pages_.data() + (place % kWays * sets_ + place / kWays) * kPageSize, kPageSize);
}

std::optional<PageBytes> PageCache::lookup(PageKey key) {
  Tag* const tag = find(key);
  if (tag == nullptr) {
    ++stats_.misses;
    return std::nullopt;
  }
  ++stats_.hits;
  tag->round = round_;
  return page_of(tag);
}

// A free place, else the stalest if `keep` allows to take it, else none.
PageCache::Tag* PageCache::choose_place(PageKey key, KeepBase keep) {
  Tag* const set = set_of(key);
  Tag* oldest = set;
  for (Tag* tag = set; tag != set + kWays; ++tag) {
    if (tag->page == 0) return tag;
    if (age(*tag) > age(*oldest)) oldest = tag;
  }
  const bool stale = age(*oldest) >= kStaleAge;
  return keep == KeepBase::kYes && stale ? oldest : nullptr;
}

bool PageCache::insert(PageKey key, PageView page, KeepBase keep) {
  CHECK(keep != KeepBase::kInvalid && find(key) == nullptr);
  if (keep == KeepBase::kNo) return false;
  Tag* const tag = choose_place(key, keep);
  if (tag == nullptr) {
    ++stats_.refusals;
    return false;
  }
  if (tag->page != 0) {
    ++stats_.evictions;
    forget(tag);
  }
  *tag = Tag{tag_page(key.address), key.space, keep == KeepBase::kIfRoom ? round_ - kStaleAge : round_};
  std::memcpy(page_of(tag).data(), page.data(), kPageSize);
  ++size_;
  ++stats_.insertions;
  return true;
}

bool PageCache::update(PageKey key, PageView page) {
  const Tag* const tag = find(key);
  if (tag == nullptr) return false;
  std::memcpy(page_of(tag).data(), page.data(), kPageSize);
  return true;
}

bool PageCache::demote(PageKey key) {
  Tag* const tag = find(key);
  if (tag == nullptr) return false;
  tag->round = round_ - kDemotedAge;
  return true;
}

void PageCache::forget(Tag* tag) {
  *tag = Tag{};
  --size_;
}

bool PageCache::evict(PageKey key) {
  Tag* const tag = find(key);
  if (tag == nullptr) return false;
  forget(tag);
  return true;
}

size_t PageCache::discard(uint32_t space, AddressRange range) {
  const size_t before = size_;
  if (size_ == 0 || range.empty()) return 0;
  const uint64_t first = page_floor(range.start.value());
  const uint64_t last = page_floor(range.end.value() - 1);
  const uint64_t pages = ((last - first) >> kPageShift) + 1;
  if (pages <= sets_) {  // a lookup scans one set; a scan of all tags costs as much as `sets_` of them
    for (uint64_t i = 0; i < pages; ++i) evict(PageKey{space, RemoteAddr(first + (i << kPageShift))});
    return before - size_;
  }
  for (Tag* tag = tags(); tag != tags() + capacity(); ++tag) {
    if (tag->page == 0 || tag->space != space) continue;
    const uint64_t address = (tag->page - 1) << kPageShift;
    if (first <= address && address <= last) forget(tag);
  }
  return before - size_;
}

void PageCache::clear() {
  // KERNEL: private anonymous memory reads as zeros after MADV_DONTNEED, which is what an empty tag is. It
  // cannot fail on a mapping of our own that is not locked; under mlockall() it does (EINVAL), so the tags go
  // by hand too.
  ::madvise(pages_.data(), pages_.size(), MADV_DONTNEED);
  if (::madvise(tag_memory_.data(), tag_memory_.size(), MADV_DONTNEED) != 0) {
    std::memset(tag_memory_.data(), 0, tag_memory_.size());
  }
  size_ = 0;
}

}  // namespace godwit::codec
