#include "engine/migration/lobby.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>

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
  visit->address_ = channel->peer_name().substr(0, channel->peer_name().rfind(':'));
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

Lobby::Visit* Lobby::find_one_to_send_away() {
  std::map<std::string_view, size_t> of_address;
  size_t strangers = 0;
  for (const auto& visit : visits_) {
    if (visit->known_) continue;
    ++strangers;
    ++of_address[visit->address_];
  }
  if (strangers < limits_.strangers) return nullptr;
  const auto crowd = std::max_element(of_address.begin(), of_address.end(),
                                      [](const auto& a, const auto& b) { return a.second < b.second; });
  return std::find_if(visits_.begin(), visits_.end(),
                      [&](const auto& visit) { return !visit->known_ && visit->address_ == crowd->first; })
      ->get();
}

/// INVARIANT: never more strangers' threads than the limit; a cancelled one ends at once.
void Lobby::make_room() {
  sweep();
  std::thread* leaving = nullptr;
  {
    const std::lock_guard lock(mutex_);
    Visit* visit = find_one_to_send_away();
    if (visit == nullptr) return;
    send_away(*visit, kCrowded);
    leaving = &visit->thread_;
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
