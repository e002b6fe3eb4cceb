// The choice of a packing against a channel that is simulated: a socket's buffer, a link, a peer, and memory
// of a kind. Whatever they are like, it must come close to the best that one fixed choice could do.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <string>

#include "engine/migration/packing_policy.h"

namespace godwit::migration {
namespace {

using wire::Packing;

constexpr size_t kBatch = 1_MiB;

struct Method {
  double speed;  ///< bytes a second
  double ratio;
};

constexpr double kSocketBuffer = 4 * 1048576.0;

struct World {
  const char* name;
  double link;  ///< bytes a second
  Method lz4, zstd;
  double produce = 2.5e9;  ///< bytes a second: reading the memory
  double peer = 2e9;       ///< plain bytes a second that it installs
  double copy = 3e9;       ///< into the socket's buffer
  double buffer = kSocketBuffer;
  bool file = false;
};

/// One channel of that world: a queue of bytes that a link, then a peer, empties.
class Channel {
 public:
  explicit Channel(const World& world) : world_(world) {}
  World& world() { return world_; }

  BatchCost send(Packing packing) {
    BatchCost cost;
    cost.plain = kBatch;
    cost.tried = packing;
    cost.produce = from_seconds(kBatch / world_.produce);
    const Method method = packing == Packing::kLz4 ? world_.lz4 : world_.zstd;
    double ratio = 1;
    if (packing != Packing::kNone) {
      cost.pack = from_seconds(kBatch / method.speed);
      if (method.ratio < 15.0 / 16) ratio = method.ratio;
    }
    cost.sent = static_cast<size_t>(ratio * kBatch);
    now_ += to_seconds(cost.produce + cost.pack);
    const double begin = now_;
    cost.copy = from_seconds(static_cast<double>(cost.sent) / world_.copy);
    now_ += to_seconds(cost.copy);
    const auto bytes = static_cast<double>(cost.sent);
    const double unpack = packing == Packing::kNone ? 0 : kBatch / 1.5e9;
    drained_ = std::max(drained_, now_) + std::max(bytes / world_.link, kBatch / world_.peer + unpack);
    queue_.push_back({drained_, bytes});
    queued_ += bytes;
    while (!queue_.empty() && (queue_.front().first <= now_ || queued_ > world_.buffer)) {
      now_ = std::max(now_, queue_.front().first);
      queued_ -= queue_.front().second;
      queue_.pop_front();
    }
    cost.waited = std::max(Nanos{}, from_seconds(now_ - begin) - cost.copy);
    cost.peer_is_behind = kBatch / world_.peer + unpack > bytes / world_.link;
    return cost;
  }
  /// Until the peer has all.
  double finish() { return std::max(now_, drained_); }

 private:
  World world_;
  double now_ = 0, drained_ = 0, queued_ = 0;
  std::deque<std::pair<double, double>> queue_;
};

double fixed(const World& world, Packing packing, size_t batches) {
  Channel channel(world);
  for (size_t i = 0; i < batches; ++i) channel.send(packing);
  return channel.finish();
}

struct Outcome {
  double seconds = 0;
  std::map<Packing, size_t> batches;
  Packing last = Packing::kNone;
};

/// `change` may turn the world into another at any batch.
Outcome run(const World& world, size_t batches, const std::function<void(size_t, World&)>& change = {}) {
  Channel channel(world);
  PackingPolicy policy(Compression::kAuto, world.file);
  Outcome result;
  for (size_t i = 0; i < batches; ++i) {
    if (change) change(i, channel.world());
    const Packing packing = policy.next(PackingGoal::kThroughput);
    ++result.batches[packing];
    policy.note(channel.send(packing));
  }
  result.seconds = channel.finish();
  result.last = policy.current();
  return result;
}

constexpr Method kText4{600e6, 0.40}, kTextZ{350e6, 0.25};      // text, heaps
constexpr Method kSparse4{2.2e9, 0.05}, kSparseZ{1.3e9, 0.03};  // mostly zeros
constexpr Method kNoise4{2.5e9, 1.0}, kNoiseZ{900e6, 1.0};      // compressed or encrypted already

const World kWorlds[] = {
    {"loopback, text", 5e9, kText4, kTextZ},
    {"loopback, sparse", 5e9, kSparse4, kSparseZ},
    {"loopback, noise", 5e9, kNoise4, kNoiseZ},
    {"10 Gbit/s, text", 1.18e9, kText4, kTextZ},
    {"10 Gbit/s, sparse", 1.18e9, kSparse4, kSparseZ},
    {"2.5 Gbit/s, text", 300e6, kText4, kTextZ},
    {"1 Gbit/s, text", 118e6, kText4, kTextZ},
    {"1 Gbit/s, sparse", 118e6, kSparse4, kSparseZ},
    {"1 Gbit/s, noise", 118e6, kNoise4, kNoiseZ},
    {"100 Mbit/s, text", 12e6, kText4, kTextZ},
    {"100 Mbit/s, noise", 12e6, kNoise4, kNoiseZ},
    {"1 Gbit/s, a slow processor", 118e6, {90e6, 0.4}, {50e6, 0.25}, 300e6},
    {"a disk that works in our time, text", 5e9, kText4, kTextZ, 2.5e9, 5e9, 150e6, kSocketBuffer, true},
    {"a disk that works in our time, noise", 5e9, kNoise4, kNoiseZ, 2.5e9, 5e9, 150e6, kSocketBuffer, true},
    {"a slow peer", 5e9, kText4, kTextZ, 2.5e9, 250e6},
    {"a slow peer at 10 Gbit/s, sparse", 1.18e9, kSparse4, kSparseZ, 2.5e9, 250e6},
};

TEST(PackingPolicy, ComesCloseToTheBestFixedChoice) {
  constexpr size_t kBatches = 1024;
  for (const World& world : kWorlds) {
    const double none = fixed(world, Packing::kNone, kBatches);
    const double best =
        std::min({none, fixed(world, Packing::kLz4, kBatches), fixed(world, Packing::kZstd, kBatches)});
    const Outcome chosen = run(world, kBatches);
    const std::string told = fmt::format(
        "{}: {:.3f} s; none {:.3f}, lz4 {:.3f}, zstd {:.3f}; batches {} {} {}", world.name, chosen.seconds,
        none, fixed(world, Packing::kLz4, kBatches), fixed(world, Packing::kZstd, kBatches),
        chosen.batches.contains(Packing::kNone) ? chosen.batches.at(Packing::kNone) : 0,
        chosen.batches.contains(Packing::kLz4) ? chosen.batches.at(Packing::kLz4) : 0,
        chosen.batches.contains(Packing::kZstd) ? chosen.batches.at(Packing::kZstd) : 0);
    EXPECT_LE(chosen.seconds, 1.08 * best) << told;
    EXPECT_LE(chosen.seconds, 1.02 * none) << told;
  }
}

TEST(PackingPolicy, AFastLinkIsNeverEvenProbed) {
  const Outcome chosen = run(kWorlds[0], 1000);
  EXPECT_EQ(chosen.batches.at(Packing::kNone), 1000u);
}

TEST(PackingPolicy, IncompressibleMemorySoonStopsTrying) {
  const Outcome chosen = run({"", 118e6, kNoise4, kNoiseZ}, 4000);
  EXPECT_EQ(chosen.last, Packing::kNone);
  EXPECT_LE(chosen.batches.at(Packing::kLz4), 12u) << "one sample, and half as often each time";
  EXPECT_LE(chosen.batches.at(Packing::kZstd), 12u);
}

TEST(PackingPolicy, FollowsMemoryThatChanges) {
  const auto change = [](size_t i, World& world) {
    const bool noise = i >= 200 && i < 400;
    world.lz4 = noise ? kNoise4 : kText4;
    world.zstd = noise ? kNoiseZ : kTextZ;
  };
  const World world{"", 118e6, kText4, kTextZ};
  const Outcome chosen = run(world, 1000, change);
  EXPECT_LT(chosen.seconds, 0.7 * fixed(world, Packing::kNone, 1000));
  EXPECT_NE(chosen.last, Packing::kNone);
}

TEST(PackingPolicy, FindsOutThatALinkBecameFast) {
  const auto change = [](size_t i, World& world) { world.link = i < 100 ? 118e6 : 5e9; };
  const World slow{"", 118e6, kText4, kTextZ};
  const Outcome chosen = run(slow, 4000, change);
  EXPECT_EQ(chosen.last, Packing::kNone);
  EXPECT_GT(chosen.batches.at(Packing::kNone), 3000u);
}

TEST(PackingPolicy, WhatIsWantedIsDone) {
  for (const auto& [wanted, packing] :
       {std::pair(Compression::kNone, Packing::kNone), std::pair(Compression::kLz4, Packing::kLz4),
        std::pair(Compression::kZstd, Packing::kZstd)}) {
    PackingPolicy policy(wanted);
    Channel channel({"", 5e9, kNoise4, kNoiseZ});
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(policy.next(PackingGoal::kThroughput), packing);
      EXPECT_EQ(policy.next(PackingGoal::kLatency), packing);
      policy.note(channel.send(packing));
    }
  }
}

TEST(PackingPolicy, InTheFreezeNothingOverlaps) {
  struct {
    const char* what;
    PackingCosts costs;
    PackingCosts::Method method;
    bool in_round, in_freeze;  ///< whether it beats sending plain
  } const cases[] = {
      {"slow link", {.produce = 0.4e-9, .link = 8e-9}, {.pack = 1.7e-9, .ratio = 0.4}, true, true},
      {"no limit", {.produce = 0.4e-9, .link = 0}, {.pack = 0.4e-9, .ratio = 0.1}, false, false},
      {"packs as fast as it sends",
       {.produce = 0.4e-9, .link = 2.4e-9},
       {.pack = 1.7e-9, .ratio = 0.4},
       true,
       false},
      {"incompressible", {.produce = 0.4e-9, .link = 8e-9}, {.pack = 0.4e-9, .ratio = 1}, false, false},
  };
  for (const auto& c : cases) {
    const auto beats = [&](PackingGoal goal) {
      return pace(c.costs, c.method, goal) < pace(c.costs, {}, goal);
    };
    EXPECT_EQ(beats(PackingGoal::kThroughput), c.in_round) << c.what;
    EXPECT_EQ(beats(PackingGoal::kLatency), c.in_freeze) << c.what;
  }
}

TEST(PackingPolicy, TheFreezeIsSampledOnNothing) {
  PackingPolicy fresh(Compression::kAuto);
  EXPECT_EQ(fresh.next(PackingGoal::kLatency), Packing::kNone) << "nothing is known";
  Channel channel({"", 12e6, kText4, kTextZ});
  for (int i = 0; i < 200; ++i) fresh.note(channel.send(fresh.next(PackingGoal::kThroughput)));
  EXPECT_EQ(fresh.next(PackingGoal::kLatency), Packing::kZstd);
}

}  // namespace
}  // namespace godwit::migration
