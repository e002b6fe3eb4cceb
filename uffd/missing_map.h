// What one address space lacks, after it was let run before all of its memory had come (post-copy). A page
// has two addresses: where it stands *now*, and its *origin*, where it stood when the process was frozen and
// by which it is asked for and sent. They differ after mremap. Pure bookkeeping, no locks: the fault
// server's.
#pragma once

#include <optional>
#include <vector>

#include "engine/model/page_set.h"

namespace godwit::uffd {

class MissingMap {
 public:
  MissingMap() = default;
  explicit MissingMap(PageSet pages) : pages_(std::move(pages)) {}

  [[nodiscard]] bool empty() const { return pages_.empty(); }
  [[nodiscard]] uint64_t size() const { return pages_.size(); }  ///< pages
  [[nodiscard]] bool contains(RemoteAddr now) const { return pages_.contains(now); }
  [[nodiscard]] RemoteAddr origin_of(RemoteAddr now) const;
  /// What is missing, by origin; in no order.
  [[nodiscard]] std::vector<AddressRange> origins() const;

  /// A part of what came, and where it belongs.
  struct Place {
    AddressRange now;
    RemoteAddr origin;  ///< of its first page
  };
  /// Where the missing ones of the pages `origin` stand now.
  [[nodiscard]] std::vector<Place> places_of(AddressRange origin) const;

  /// They are there, or nobody needs them any more.
  void erase(AddressRange now) { pages_.erase(now); }
  /// mremap: what is missing of `from` stands at `to` now. What stood there before was erased.
  void move(AddressRange from, RemoteAddr to);

 private:
  [[nodiscard]] std::vector<Place> pieces_of(AddressRange now) const;
  void cut_moves(AddressRange now);

  PageSet pages_;             // by where they stand now
  std::vector<Place> moves_;  // what does not stand at its origin; disjoint
};

}  // namespace godwit::uffd
