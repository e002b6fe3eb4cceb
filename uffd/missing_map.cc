#include "uffd/missing_map.h"

#include <algorithm>

namespace godwit::uffd {
namespace {

using Place = MissingMap::Place;

AddressRange origin_range(const Place& place) {
  return {place.origin, place.origin + place.now.size()};
}

Place part_of(const Place& place, AddressRange now) {
  return {now, place.origin + (now.start - place.now.start)};
}

/// The parts of `range` that no place covers.
std::vector<AddressRange> rest_of(AddressRange range, const std::vector<Place>& places) {
  std::vector<AddressRange> rest{range};
  for (const Place& place : places) {
    std::vector<AddressRange> left;
    for (const AddressRange& part : rest) {
      const AddressRange before{part.start, std::min(part.end, place.now.start)};
      const AddressRange after{std::max(part.start, place.now.end), part.end};
      if (!part.overlaps(place.now)) {
        left.push_back(part);
        continue;
      }
      if (!before.empty()) left.push_back(before);
      if (!after.empty()) left.push_back(after);
    }
    rest = std::move(left);
  }
  return rest;
}

}  // namespace

RemoteAddr MissingMap::origin_of(RemoteAddr now) const {
  for (const Place& place : moves_) {
    if (place.now.contains(now)) return place.origin + (now - place.now.start);
  }
  return now;
}

/// `now`, cut where the distance to the origin changes.
std::vector<Place> MissingMap::pieces_of(AddressRange now) const {
  std::vector<Place> pieces;
  for (const Place& place : moves_) {
    const AddressRange common = intersect(place.now, now);
    if (!common.empty()) pieces.push_back(part_of(place, common));
  }
  for (const AddressRange& part : rest_of(now, moves_)) pieces.push_back({part, part.start});
  return pieces;
}

std::vector<AddressRange> MissingMap::origins() const {
  std::vector<AddressRange> found;
  for (const AddressRange& run : pages_.runs()) {
    for (const Place& piece : pieces_of(run)) found.push_back(origin_range(piece));
  }
  return found;
}

std::vector<Place> MissingMap::places_of(AddressRange origin) const {
  std::vector<Place> found;
  const auto add = [&](const Place& place) {
    for (const AddressRange& run : pages_.runs_in(place.now)) found.push_back(part_of(place, run));
  };
  for (const AddressRange& part : rest_of(origin, moves_)) add({part, part.start});
  for (const Place& place : moves_) {
    const AddressRange common = intersect(origin_range(place), origin);
    if (common.empty()) continue;
    const RemoteAddr start = place.now.start + (common.start - place.origin);
    add({{start, start + common.size()}, common.start});
  }
  return found;
}

void MissingMap::cut_moves(AddressRange now) {
  std::vector<Place> left;
  for (const Place& place : moves_) {
    if (!place.now.overlaps(now)) {
      left.push_back(place);
      continue;
    }
    const AddressRange before{place.now.start, now.start}, after{now.end, place.now.end};
    if (!before.empty()) left.push_back(part_of(place, before));
    if (!after.empty()) left.push_back(part_of(place, after));
  }
  moves_ = std::move(left);
}

void MissingMap::move(AddressRange from, RemoteAddr to) {
  struct Moved {
    Place place;
    std::vector<AddressRange> runs;
  };
  std::vector<Moved> moved;
  const auto shifted = [&](AddressRange range) {
    const RemoteAddr start = to + (range.start - from.start);
    return AddressRange{start, start + range.size()};
  };
  for (const Place& piece : pieces_of(from)) {
    const std::vector<AddressRange> runs = pages_.runs_in(piece.now);
    // A piece without missing pages needs no memory of where it stood. KERNEL: an area that shrinks as it
    // moves is told with its old length, and behind its new end stand others; so no more of it than lacks
    // something.
    if (runs.empty()) continue;
    const AddressRange lacking{runs.front().start, runs.back().end};
    moved.push_back({{shifted(lacking), part_of(piece, lacking).origin}, runs});
  }
  pages_.erase(from);
  cut_moves(from);
  for (const Moved& one : moved) cut_moves(one.place.now);
  std::erase_if(moves_, [&](const Place& place) { return pages_.runs_in(place.now).empty(); });
  for (const Moved& one : moved) {
    for (const AddressRange& run : one.runs) pages_.insert(shifted(run));
    if (one.place.now.start != one.place.origin) moves_.push_back(one.place);
  }
}

}  // namespace godwit::uffd
