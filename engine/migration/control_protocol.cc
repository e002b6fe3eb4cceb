#include "engine/migration/control_protocol.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/base/units.h"

namespace godwit::migration {
namespace {

using nlohmann::ordered_json;

constexpr Wish kWishes[] = {Wish::kStatus, Wish::kSet,       Wish::kCancel,  Wish::kPause,
                            Wish::kResume, Wish::kFreezeNow, Wish::kPostcopy};

Error unreadable(std::string_view what, std::string_view why) {
  return fail(ErrorKind::kUsage, "read a request", std::string(what), std::string(why));
}

const char* name_of(OnTimeout what) {
  if (what == OnTimeout::kPostcopy) return "postcopy";
  return what == OnTimeout::kForce ? "force" : "cancel";
}

// ---- arguments
// ------------------------------------------------------------------------------------------------------

/// Reads the arguments of a `set`, and notes what is left over or wrong.
class Arguments {
 public:
  explicit Arguments(const ordered_json& object) : object_(object) {}

  template <typename T>
  void number(const char* name, std::optional<T>& value, double most) {
    const ordered_json* found = find(name);
    if (found == nullptr) return;
    const bool fits = found->is_number() && found->get<double>() >= 0 && found->get<double>() <= most;
    const bool whole = fits && std::floor(found->get<double>()) == found->get<double>();
    if (!whole)
      wrong(name, fmt::format("give a whole number up to {:.0f}", most));
    else
      value = static_cast<T>(found->get<double>());
  }

  void time(const char* name, std::optional<Nanos>& value, Nanos unit) {
    constexpr double kMost = 1e9;
    const ordered_json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_number() || !(found->get<double>() >= 0) || found->get<double>() * 1.0 > kMost)
      wrong(name, "give a number from 0 to 1000000000");
    else
      value = Nanos(static_cast<int64_t>(found->get<double>() * static_cast<double>(unit.count())));
  }

  void flag(const char* name, std::optional<bool>& value) {
    const ordered_json* found = find(name);
    if (found == nullptr) return;
    if (!found->is_boolean())
      wrong(name, "give true or false");
    else
      value = found->get<bool>();
  }

  void choice(const char* name, std::optional<OnTimeout>& value) {
    const ordered_json* found = find(name);
    if (found == nullptr) return;
    const std::string text = found->is_string() ? found->get<std::string>() : "";
    const OnTimeout all[] = {OnTimeout::kCancel, OnTimeout::kForce, OnTimeout::kPostcopy};
    const auto* const named =
        std::find_if(std::begin(all), std::end(all), [&](OnTimeout what) { return text == name_of(what); });
    if (named != std::end(all))
      value = *named;
    else
      wrong(name, "give cancel, force or postcopy");
  }

  /// After all that there is was asked for.
  [[nodiscard]] Status finish() const {
    if (wrong_) return *wrong_;
    if (known_ == object_.size()) return {};
    for (const auto& [name, value] : object_.items()) {
      if (!asked(name)) return unreadable(name.substr(0, 40), "there is no such limit");
    }
    return {};
  }

 private:
  const ordered_json* find(const char* name) {
    names_.emplace_back(name);
    const auto found = object_.find(name);
    if (found == object_.end()) return nullptr;
    ++known_;
    return &*found;
  }
  [[nodiscard]] bool asked(std::string_view name) const {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  }
  void wrong(const char* name, std::string_view why) {
    if (!wrong_) wrong_ = unreadable(name, why);
  }

  const ordered_json& object_;
  std::vector<std::string_view> names_;
  size_t known_ = 0;
  std::optional<Error> wrong_;
};

constexpr Nanos kMilli = std::chrono::milliseconds(1);
constexpr Nanos kSecond = std::chrono::seconds(1);
constexpr double kMostBytes = 1e15;

Result<Changes> parse_changes(const ordered_json& object) {
  Changes changes;
  Arguments arguments(object);
  arguments.time("downtime-limit", changes.downtime, kMilli);
  arguments.number("max-bandwidth", changes.bandwidth, kMostBytes);
  arguments.number("max-rounds", changes.max_rounds, 1e6);
  arguments.time("timeout", changes.timeout, kSecond);
  arguments.choice("on-timeout", changes.on_timeout);
  arguments.flag("auto-converge", changes.throttle);
  arguments.number("cpu-throttle-initial", changes.throttle_initial, 99);
  arguments.number("cpu-throttle-increment", changes.throttle_increment, 99);
  arguments.number("max-cpu-throttle", changes.throttle_maximum, 99);
  arguments.number("dirty-limit", changes.dirty_limit, kMostBytes);
  TRY(arguments.finish());
  return changes;
}

double in(Nanos unit, Nanos time) {
  return static_cast<double>(time.count()) / static_cast<double>(unit.count());
}

ordered_json to_json(const Changes& changes) {
  ordered_json object = ordered_json::object();
  const auto add = [&](const char* name, const auto& value) {
    if (value) object[name] = *value;
  };
  if (changes.downtime) object["downtime-limit"] = in(kMilli, *changes.downtime);
  add("max-bandwidth", changes.bandwidth);
  add("max-rounds", changes.max_rounds);
  if (changes.timeout) object["timeout"] = in(kSecond, *changes.timeout);
  if (changes.on_timeout) object["on-timeout"] = name_of(*changes.on_timeout);
  add("auto-converge", changes.throttle);
  add("cpu-throttle-initial", changes.throttle_initial);
  add("cpu-throttle-increment", changes.throttle_increment);
  add("max-cpu-throttle", changes.throttle_maximum);
  add("dirty-limit", changes.dirty_limit);
  return object;
}

// ---- the status
// -----------------------------------------------------------------------------------------------------

ordered_json parameters(const Limits& limits, uint64_t bandwidth) {
  return to_json(Changes{.downtime = limits.downtime,
                         .bandwidth = bandwidth,
                         .max_rounds = limits.max_rounds,
                         .timeout = limits.timeout.value_or(Nanos{}),
                         .on_timeout = limits.on_timeout,
                         .throttle = limits.throttle.automatic,
                         .throttle_initial = limits.throttle.initial,
                         .throttle_increment = limits.throttle.increment,
                         .throttle_maximum = limits.throttle.maximum,
                         .dirty_limit = limits.throttle.dirty_limit});
}

ordered_json ram(const Statistics& s) {
  constexpr double kBitsOfMega = 8 / 1e6;
  return {{"transferred", s.transferred},
          {"remaining", s.remaining()},
          {"total", s.total_pages * kPageSize},
          {"duplicate", s.pages.zero},
          {"normal", s.pages.raw},
          {"normal-bytes", s.pages.raw * kPageSize},
          {"dirty-pages-rate", std::llround(s.dirty_pages_per_second)},
          {"mbps", s.rate(monotonic_now()) * kBitsOfMega},
          {"dirty-sync-count", s.collects},
          {"page-size", kPageSize}};
}

std::string line_of(const ordered_json& object) {
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

ErrorKind kind_named(std::string_view name) {
  for (int kind = 1; kind <= static_cast<int>(ErrorKind::kUntrusted); ++kind) {
    if (to_string(static_cast<ErrorKind>(kind)) == name) return static_cast<ErrorKind>(kind);
  }
  return ErrorKind::kSystem;
}

std::string text_of(const ordered_json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

}  // namespace

std::string_view to_string(Wish wish) {
  switch (wish) {
    case Wish::kStatus:
      return "status";
    case Wish::kSet:
      return "set";
    case Wish::kCancel:
      return "cancel";
    case Wish::kPause:
      return "pause";
    case Wish::kResume:
      return "resume";
    case Wish::kFreezeNow:
      return "freeze-now";
    case Wish::kPostcopy:
      return "postcopy";
    case Wish::kInvalid:
      break;
  }
  return "invalid";
}

Result<Request> parse_request(std::string_view line) {
  if (line.size() > kMaxRequest) return unreadable("a line", fmt::format("at most {} bytes", kMaxRequest));
  const auto object = ordered_json::parse(line, nullptr, false);
  if (!object.is_object()) return unreadable("a line", "it is not one JSON object");
  const auto execute = object.find("execute");
  if (execute == object.end() || !execute->is_string()) return unreadable("execute", "name what to do");
  Request request;
  for (const Wish wish : kWishes) {
    if (to_string(wish) == execute->get<std::string>()) request.wish = wish;
  }
  if (request.wish == Wish::kInvalid)
    return unreadable("execute", "give status, set, cancel, pause, resume, freeze-now or postcopy");
  const auto arguments = object.find("arguments");
  if (arguments == object.end()) return request;
  if (!arguments->is_object()) return unreadable("arguments", "give an object");
  if (request.wish == Wish::kSet) request.changes = TRY(parse_changes(*arguments));
  if (request.wish != Wish::kSet && !arguments->empty()) return unreadable("arguments", "only set has any");
  return request;
}

std::string encode(const Request& request) {
  ordered_json object = {{"execute", to_string(request.wish)}};
  if (request.wish == Wish::kSet) object["arguments"] = to_json(request.changes);
  return line_of(object);
}

std::string encode_error(const Error& error) {
  return line_of({{"error",
                   {{"class", to_string(error.kind)},
                    {"desc", error.message()},
                    {"operation", error.operation},
                    {"subject", error.subject},
                    {"remedy", error.remedy}}}});
}

std::string encode_status(const Statistics& s, const Limits& limits, uint64_t bandwidth) {
  ordered_json status = {{"job", s.pid},
                         {"status", to_string(s.state)},
                         {"paused", s.paused},
                         {"destination", s.destination},
                         {"total-time", in(kMilli, s.total)},
                         {"setup-time", in(kMilli, s.setup)},
                         {"expected-downtime", in(kMilli, s.expected_downtime)}};
  if (s.state == JobState::kCompleted) status["downtime"] = in(kMilli, s.downtime);
  status["round"] = s.round;
  status["ram"] = ram(s);
  if (s.cache_bytes > 0) status["xbzrle-cache"] = {{"cache-size", s.cache_bytes}, {"pages", s.pages.xbzrle}};
  const ThrottleLevel throttle = within(s.throttle, limits.throttle);
  status["cpu-throttle-percentage"] = throttle.cpu_percent;
  status["dirty-limit-in-force"] = throttle.writers;
  status["parameters"] = parameters(limits, bandwidth);
  return line_of({{"return", status}});
}

std::string serve(Control& control, std::string_view line) {
  const auto request = parse_request(line);
  if (!request.ok()) return encode_error(request.error());
  Status done;
  switch (request.value().wish) {
    case Wish::kStatus:
      return encode_status(control.statistics(), control.limits(), control.bandwidth());
    case Wish::kSet:
      done = control.set(request.value().changes);
      break;
    case Wish::kCancel:
      done = control.cancel();
      break;
    case Wish::kPause:
      done = control.pause();
      break;
    case Wish::kResume:
      done = control.resume();
      break;
    case Wish::kFreezeNow:
      done = control.freeze_soon();
      break;
    case Wish::kPostcopy:
      done = control.switch_soon();
      break;
    case Wish::kInvalid:
      break;
  }
  return done.ok() ? R"({"return":{}})" : encode_error(done.error());
}

Result<std::string> parse_answer(std::string_view line) {
  const auto object = ordered_json::parse(line, nullptr, false);
  const auto found = object.is_object() ? object.find("return") : object.end();
  if (object.is_object() && found != object.end() && found->is_object()) return line_of(*found);
  const auto error = object.is_object() ? object.find("error") : object.end();
  if (!object.is_object() || error == object.end() || !error->is_object())
    return fail(ErrorKind::kCorrupt, "read an answer", "the control socket", "it is no answer of an engine");
  return fail(kind_named(text_of(*error, "class")), text_of(*error, "operation"), text_of(*error, "subject"),
              text_of(*error, "remedy"));
}

}  // namespace godwit::migration
