#include "engine/migration/packing_policy.h"

#include <algorithm>

namespace godwit::migration {
namespace {

using wire::Packing;

/// More than a socket's buffer takes at once (4 MiB by default), or nobody would wait for a link.
constexpr size_t kWindow = 8_MiB;
/// On a slow link a window of less tells enough.
constexpr size_t kLeastWindow = 2_MiB;
constexpr Nanos kLongWindow = std::chrono::milliseconds(100);

/// We wait for the stream for a larger part of the time: it is the bottleneck.
constexpr double kSaturated = 0.5;
/// Seconds a byte. A disk whose driver takes the processor for longer than this, in our time, is slow; LZ4
/// packs at about this speed. Not a socket: there it is the copies, which a busy host makes slower.
constexpr double kSlowCopy = 1.6e-9;
/// A forecast must promise so much for a trial; it costs a window.
constexpr double kPromise = 1.15;
/// The trial must have given so much. At less, the processors have better to do, on both hosts.
constexpr double kGain = 1.05;
/// Beyond this ratio the memory is not compressible.
constexpr double kHardly = 0.9;
constexpr unsigned kStale = 16;    ///< windows after which a sample tells nothing any more
constexpr unsigned kPatience = 4;  ///< windows of the first refusal
constexpr unsigned kPatienceOfNone = 32;
constexpr unsigned kMostPatience = 64;
/// A link so much slower than before is another link: what was refused on it is asked again.
constexpr double kAnotherLink = 2;
constexpr double kLearning = 0.25;  ///< weight of the newest batch

constexpr Packing kPackings[] = {Packing::kLz4, Packing::kZstd};

double mix(bool known, double before, double now, double weight) {
  return known ? before + weight * (now - before) : now;
}

double per_byte(Nanos time, size_t bytes) {
  return bytes == 0 ? 0 : to_seconds(time) / static_cast<double>(bytes);
}

}  // namespace

double pace(const PackingCosts& costs, const PackingCosts::Method& method, PackingGoal goal) {
  const double work = costs.produce + method.pack + method.ratio * costs.copy;
  const double way = method.ratio * costs.link;
  return goal == PackingGoal::kLatency ? work + way : std::max(work, way);
}

bool PackingPolicy::Window::full() const {
  return plain >= kWindow || (plain >= kLeastWindow && total() >= kLongWindow);
}

/// The buffers of both sockets hold that many bytes sent one way before, which a change of the way would be
/// credited with.
bool PackingPolicy::Window::fills_buffers() const {
  return sent >= kWindow;
}

wire::Packing PackingPolicy::next(PackingGoal goal) const {
  switch (wanted_) {
    case Compression::kLz4:
      return Packing::kLz4;
    case Compression::kZstd:
      return Packing::kZstd;
    case Compression::kAuto:
      break;
    default:
      return Packing::kNone;
  }
  if (goal == PackingGoal::kThroughput) return sample_ != Packing::kNone ? sample_ : current_;
  Packing best = Packing::kNone;
  double least = pace(costs_, {}, goal);
  for (const Packing packing : kPackings) {
    if (!of(packing).known) continue;
    const double takes = pace(costs_, of(packing).costs, goal);
    if (takes < least) {
      best = packing;
      least = takes;
    }
  }
  return best;
}

void PackingPolicy::note(const BatchCost& cost) {
  if (wanted_ != Compression::kAuto || cost.plain == 0) return;
  learn(cost);
  if (cost.tried != current_ && cost.tried == sample_) {
    // A sample is no part of the window, whose batches were all sent one way.
    const PackingCosts::Method& seen = of(cost.tried).costs;
    const double takes = pace(costs_, seen, PackingGoal::kThroughput);
    if (seen.ratio > kHardly || takes * kPromise >= measured_) refuse(cost.tried);
    choose_sample();
    if (sample_ == Packing::kNone) propose();
    return;
  }
  if (cost.tried != current_) return;
  window_.plain += cost.plain;
  window_.sent += cost.sent;
  window_.produce += cost.produce;
  window_.pack += cost.pack;
  window_.copy += cost.copy;
  window_.waited += cost.waited;
  if (cost.peer_is_behind) window_.for_peer += cost.waited;
  if (trial_ && trial_->settling && window_.fills_buffers()) {
    trial_->settling = false;
    window_ = {};
  } else if (trial_ && has_lost()) {
    end_trial(false);
  } else if (window_.full() && !(trial_ && trial_->settling)) {
    judge();
  }
}

/// The trial took longer already than its whole window would have taken before.
bool PackingPolicy::has_lost() const {
  const auto bytes = static_cast<double>(std::max(kWindow, window_.plain));
  return spent() > trial_->pace * bytes * kGain;
}

/// Seconds for what the window holds. What production takes says nothing of a packing: the smoothed figure,
/// so that a window of zero pages, which are read for nothing, does not decide a trial.
double PackingPolicy::spent() const {
  return costs_.produce * static_cast<double>(window_.plain) + to_seconds(window_.total() - window_.produce);
}

void PackingPolicy::learn(const BatchCost& cost) {
  if (cost.tried == Packing::kNone) return;
  Method& method = of(cost.tried);
  const bool fresh = method.known && method.age <= kStale;
  const auto ratio = static_cast<double>(cost.sent) / static_cast<double>(cost.plain);
  method.costs.pack = mix(fresh, method.costs.pack, per_byte(cost.pack, cost.plain), kLearning);
  method.costs.ratio = mix(fresh, method.costs.ratio, ratio, kLearning);
  method.known = true;
  method.age = 0;
}

/// A window is full: what did it take, and is there anything better?
void PackingPolicy::judge() {
  costs_.produce = mix(knows_costs_, costs_.produce, per_byte(window_.produce, window_.plain), kLearning);
  costs_.copy = mix(knows_costs_, costs_.copy, per_byte(window_.copy, window_.sent), kLearning);
  knows_costs_ = true;
  const bool for_link = 2 * window_.for_peer <= window_.waited;
  const bool saturated = for_link && to_seconds(window_.waited) >= kSaturated * to_seconds(window_.total());
  look_at_link(saturated);
  measured_ = spent() / static_cast<double>(window_.plain);
  window_ = {};
  for (Method& method : methods_) {
    ++method.age;
    if (method.refused > 0) --method.refused;
  }
  if (trial_)
    settle_trial();
  else
    propose();
  if (!trial_ && for_link) choose_sample();
}

/// Where we did not wait for it, it is at least as fast as what went through.
void PackingPolicy::look_at_link(bool saturated) {
  const double now = per_byte(window_.total(), window_.sent);
  if (saturated)
    costs_.link = mix(costs_.link > 0, costs_.link, now, 0.5);
  else
    costs_.link = current_ == Packing::kNone ? 0 : std::min(costs_.link, now);
  if (costs_.link <= kAnotherLink * refused_link_) return;
  refused_link_ = costs_.link;
  for (const Packing packing : kPackings) of(packing).refused = of(packing).patience = 0;
}

void PackingPolicy::settle_trial() {
  // Not to pack needs no gain of its own: it only must not be slower.
  const double wanted = current_ == Packing::kNone ? 1 : kGain;
  end_trial(measured_ * wanted <= trial_->pace);
}

void PackingPolicy::end_trial(bool won) {
  const Trial trial = *trial_;
  trial_.reset();
  window_ = {};
  if (won) {
    of(current_).patience = 0;
    refuse(trial.before);  // or the two would take turns
    return;
  }
  refuse(current_);
  current_ = trial.before;
  measured_ = trial.pace;
}

void PackingPolicy::propose() {
  if (trial_) return;
  if (current_ != Packing::kNone && pace(costs_, {}, PackingGoal::kThroughput) <= measured_ * kGain) {
    refuse(current_);
    current_ = Packing::kNone;
    return;
  }
  Packing best = current_;
  double least = measured_ / kPromise;
  for (const Packing packing : kPackings) {
    const Method& method = of(packing);
    if (packing == current_ || !method.known || method.refused > 0) continue;
    const double takes = pace(costs_, method.costs, PackingGoal::kThroughput);
    if (takes < least) {
      best = packing;
      least = takes;
    }
  }
  if (best != current_)
    try_out(best);
  else if (current_ != Packing::kNone && of(Packing::kNone).refused == 0)
    try_out(Packing::kNone);  // the link may have become faster than what we saw of it
}

void PackingPolicy::try_out(wire::Packing packing) {
  trial_ = Trial{current_, measured_};
  current_ = packing;
  window_ = {};
}

void PackingPolicy::refuse(wire::Packing packing) {
  Method& method = of(packing);
  const unsigned least = packing == Packing::kNone ? kPatienceOfNone : kPatience;
  method.patience = std::clamp(method.patience * 2, least, kMostPatience);
  method.refused = method.patience;
  refused_link_ = costs_.link;
}

/// Only a stream that keeps us waiting, or busy, is worth the time of a sample.
void PackingPolicy::choose_sample() {
  sample_ = Packing::kNone;
  if (link_bytes_per_second() > kSlowLink && !(into_file_ && costs_.copy >= kSlowCopy)) return;
  for (const Packing packing : kPackings) {
    const Method& method = of(packing);
    if (packing == current_ || method.refused > 0 || (method.known && method.age <= kStale)) continue;
    sample_ = packing;
    return;
  }
}

}  // namespace godwit::migration
