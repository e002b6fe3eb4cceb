// Whether to compress a channel's page batches, and how: from what the last ones cost, not from a flag alone.
// Pure: takes measurements, has no clock. One a channel; the sender's thread.
//
// What a byte of a batch costs the sender is the larger of two things that overlap, thanks to the socket's
// own buffer: the processor's time (produce, pack and copy it) and the link's (the bytes that are left).
// Packing pays where it takes less from the one than it gives to the other. The link is known only while it
// is the bottleneck, that is: while we wait for it, and not for a peer that is slow itself, which packing
// does not help. A forecast only proposes; each change is on trial for a window, and the clock decides.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "engine/base/clock.h"
#include "engine/base/units.h"
#include "engine/migration/compression.h"
#include "engine/wire/packed_batch.h"

namespace godwit::migration {

/// Bytes a second. Above, LZ4 on one thread has nothing to give for ordinary memory; below, remembering each
/// page of the bulk round (a copy, and a fault for fresh memory: about 1 GB/s) costs no time either.
constexpr double kSlowLink = 600e6;

/// What is to be short: the whole round, in which the link works while we do; or the time until the last byte
/// of a few has arrived (the freeze), in which nothing overlaps.
enum class PackingGoal : uint8_t { kInvalid = 0, kThroughput, kLatency };

/// One batch, as it went.
struct BatchCost {
  size_t plain = 0;                            ///< bytes of its plain record
  size_t sent = 0;                             ///< bytes that left for it
  wire::Packing tried = wire::Packing::kNone;  ///< on it; it left plain all the same if that gave little
  Nanos produce{};                             ///< reading and encoding its pages
  Nanos pack{};
  Nanos copy{};                 ///< the processor's time until the stream had taken it
  Nanos waited{};               ///< and that of sleep
  bool peer_is_behind = false;  ///< it was the peer that did not take it, not the link
};

/// Seconds a byte of plain batch, as far as known.
struct PackingCosts {
  double produce = 0;
  double copy = 0;  ///< a byte *sent*
  double link = 0;  ///< a byte *sent*; 0: it is faster than we are
  struct Method {
    double pack = 0;
    double ratio = 1;  ///< sent bytes a plain byte
  };
};
/// What a plain byte takes, by goal.
double pace(const PackingCosts& costs, const PackingCosts::Method& method, PackingGoal goal);

class PackingPolicy {
 public:
  /// `into_file`: a stream that keeps the processor busy is slow, too.
  explicit PackingPolicy(Compression wanted, bool into_file = false)
      : wanted_(wanted), into_file_(into_file) {}

  /// How to pack the next batch that holds whole pages.
  [[nodiscard]] wire::Packing next(PackingGoal goal) const;
  /// What became of a batch that next() was asked about. Those of the freeze need not be told.
  void note(const BatchCost& cost);

  [[nodiscard]] wire::Packing current() const { return current_; }
  /// As it was when it was last waited for; immense where it never was.
  [[nodiscard]] double link_bytes_per_second() const { return costs_.link > 0 ? 1 / costs_.link : 1e12; }

 private:
  static constexpr size_t kMethods = 3;
  /// What is known of one packing. A refusal lasts for a number of windows, twice as many each time.
  struct Method {
    PackingCosts::Method costs;
    bool known = false;
    unsigned age = 0;  ///< windows since it was last tried on a batch
    unsigned refused = 0;
    unsigned patience = 0;
  };
  struct Window {
    size_t plain = 0, sent = 0;
    Nanos produce{}, pack{}, copy{}, waited{};
    Nanos for_peer{};  ///< the part of `waited` that the peer is to blame for
    [[nodiscard]] Nanos total() const { return produce + pack + copy + waited; }
    [[nodiscard]] bool full() const;
    [[nodiscard]] bool fills_buffers() const;
  };
  struct Trial {
    wire::Packing before;
    double pace = 0;
    bool settling = true;  ///< nothing is judged yet
  };

  Method& of(wire::Packing packing) { return methods_[static_cast<size_t>(packing)]; }
  [[nodiscard]] const Method& of(wire::Packing packing) const {
    return methods_[static_cast<size_t>(packing)];
  }
  void learn(const BatchCost& cost);
  void judge();
  void look_at_link(bool saturated);
  void propose();
  void settle_trial();
  void end_trial(bool won);
  [[nodiscard]] double spent() const;
  [[nodiscard]] bool has_lost() const;
  void try_out(wire::Packing packing);
  void refuse(wire::Packing packing);
  void choose_sample();

  Compression wanted_;
  bool into_file_;
  wire::Packing current_ = wire::Packing::kNone;
  wire::Packing sample_ = wire::Packing::kNone;  ///< to be tried on one batch
  std::optional<Trial> trial_;
  std::array<Method, kMethods> methods_;
  PackingCosts costs_;
  bool knows_costs_ = false;  ///< of production and copies
  double measured_ = 0;       ///< the pace of the last window
  double refused_link_ = 0;   ///< what the link took when a packing was refused last
  Window window_;
};

}  // namespace godwit::migration
