#include "engine/migration/lobby.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/base/log.h"

namespace godwit::migration {
namespace {

/// Reports a second; the others are counted. Ten thousand strangers must not fill a disk with their names.
constexpr size_t kReports = 5;
constexpr const char* kTooSlow = "it did not authenticate in time";
constexpr const char* kClosed = "this destination ends";
constexpr const char* kCrowded = "it did not authenticate while many others connected";

}  // namespace

Status Lobby::Visit::become_known() {
  const std::lock_guard lock(lobby_.mutex_);
  if (sent_away_ != nullptr) return fail(ErrorKind::kTimeout, "greet a source engine", "", sent_away_);
  // A visit that has ended is no guest any more, even if nobody has swept it out yet.
  const auto guests =
      static_cast<size_t>(std::count_if(lobby_.visits_.begin(), lobby_.visits_.end(), [](const auto& visit) {
        return visit->known_ && visit->channel_ != nullptr;
      }));
  if (guests >= lobby_.limits_.guests)
    return fail(ErrorKind::kRefused, "greet a source engine", fmt::format("{} connections", guests),
                "so many are open already; try again when a migration has ended");
  known_ = true;
  return {};
}

void Lobby::admit(std::unique_ptr<transport::Channel> channel) {
  make_room();
  auto visit = std::make_unique<Visit>(*this);
  visit->channel_ = channel.get();
  Visit& entered = *visit;
  {
    const std::lock_guard lock(mutex_);
    visits_.push_back(std::move(visit));
  }
  entered.thread_ = std::thread([this, &entered, owned = std::move(channel)] { live(entered, *owned); });
}

void Lobby::live(Visit& visit, transport::Channel& channel) {
  Status handled = host_(channel, visit);
  const char* sent_away = nullptr;
  {
    const std::lock_guard lock(mutex_);
    visit.channel_ = nullptr;
    sent_away = visit.sent_away_;
  }
  if (sent_away != nullptr)
    tell(fail(ErrorKind::kTimeout, "greet a source engine", channel.peer_name(), sent_away));
  else if (!handled.ok())
    tell(handled.take_error());
  visit.finished_.store(true);
}

void Lobby::send_away(Visit& visit, const char* why) {
  if (visit.known_ || visit.channel_ == nullptr || visit.sent_away_ != nullptr) return;
  visit.sent_away_ = why;
  visit.channel_->cancel();
}

/// INVARIANT: never more strangers' threads than the limit; a cancelled one ends at once.
void Lobby::make_room() {
  sweep();
  std::thread* leaving = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto stranger = [](const auto& visit) { return !visit->known_; };
    if (static_cast<size_t>(std::count_if(visits_.begin(), visits_.end(), stranger)) < limits_.strangers)
      return;
    Visit& oldest = **std::find_if(visits_.begin(), visits_.end(), stranger);
    send_away(oldest, kCrowded);
    leaving = &oldest.thread_;
  }
  leaving->join();
  sweep();
}

void Lobby::sweep() {
  std::vector<std::unique_ptr<Visit>> left;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& visit : visits_) {
      if (monotonic_now() - visit->arrived_ > limits_.patience) send_away(*visit, kTooSlow);
    }
    const auto gone = std::stable_partition(visits_.begin(), visits_.end(),
                                            [](const auto& visit) { return !visit->finished_.load(); });
    left.assign(std::make_move_iterator(gone), std::make_move_iterator(visits_.end()));
    visits_.erase(gone, visits_.end());
  }
  for (const auto& visit : left) {
    if (visit->thread_.joinable()) visit->thread_.join();
  }
}

void Lobby::finish() {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& visit : visits_) send_away(*visit, kClosed);
  }
  for (const auto& visit : visits_) {
    if (visit->thread_.joinable()) visit->thread_.join();
  }
  const std::lock_guard lock(mutex_);
  visits_.clear();
}

void Lobby::tell(Error error) {
  // Who connects and leaves without a word is no news.
  if (error.kind == ErrorKind::kPeerGone || !report_) {
    log_debug("{}", error.message());
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    const Nanos now = monotonic_now();
    if (now - window_ > std::chrono::seconds(1)) {
      window_ = now;
      told_ = 0;
    }
    if (++told_ > kReports) {
      ++untold_;
      return;
    }
    if (untold_ > 0) error.remedy += fmt::format("; {} more before it were not told", untold_);
    untold_ = 0;
  }
  report_(error);
}

}  // namespace godwit::migration
