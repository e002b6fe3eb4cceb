#include "engine/base/fault_point.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <string>

namespace godwit {
namespace {

enum class Action { kKill, kError, kDelay };

struct Plan {
  std::string name;
  int nth = 1;
  Action action = Action::kKill;
};

std::optional<Plan> parse(const char* text) {
  if (text == nullptr) return std::nullopt;
  const std::string_view spec(text);
  Plan plan;
  const size_t at = spec.find('@');
  const size_t colon = spec.find(':');
  plan.name = spec.substr(0, std::min(at, colon));
  if (at != std::string_view::npos) {
    const auto digits = spec.substr(at + 1, colon == std::string_view::npos ? colon : colon - at - 1);
    std::from_chars(digits.data(), digits.data() + digits.size(), plan.nth);
  }
  const auto action = colon == std::string_view::npos ? std::string_view("kill") : spec.substr(colon + 1);
  if (action == "error") plan.action = Action::kError;
  if (action == "delay") plan.action = Action::kDelay;
  return plan;
}

}  // namespace

Status fault_point(std::string_view name) {
  static const std::optional<Plan> plan = parse(::getenv("GODWIT_FAULT"));
  if (!plan || plan->name != name) [[likely]]
    return {};
  static std::atomic<int> passed = 0;
  if (++passed != plan->nth) return {};
  if (plan->action == Action::kKill) ::kill(::getpid(), SIGKILL);
  if (plan->action == Action::kError) return fail(ErrorKind::kSystem, "fault point", std::string(name));
  const timespec pause{0, 200'000'000};
  ::nanosleep(&pause, nullptr);
  return {};
}

}  // namespace godwit
