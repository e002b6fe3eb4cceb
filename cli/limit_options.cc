#include "cli/limit_options.h"

#include <fmt/format.h>

#include <charconv>

namespace godwit::cli {
namespace {

Status parse_optional(const std::optional<std::string>& text, const char* what,
                      std::optional<uint64_t>& value) {
  if (text) value = TRY(parse_size(*text, what));
  return {};
}

/// The whole of `text`.
std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

migration::OnTimeout on_timeout_of(std::string_view name) {
  if (name == "postcopy") return migration::OnTimeout::kPostcopy;
  return name == "force" ? migration::OnTimeout::kForce : migration::OnTimeout::kCancel;
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text, const char* what) {
  uint64_t unit = 1;
  if (text.ends_with('k') || text.ends_with('K')) unit = uint64_t{1} << 10;
  if (text.ends_with('M')) unit = uint64_t{1} << 20;
  if (text.ends_with('G')) unit = uint64_t{1} << 30;
  const auto number = parse_number(unit == 1 ? text : text.substr(0, text.size() - 1));
  if (!number)
    return fail(ErrorKind::kUsage, fmt::format("read {}", what), std::string(text),
                "give a number, with k, M or G if you like");
  return *number * unit;
}

Result<migration::Changes> changes_of(const LimitArguments& arguments) {
  migration::Changes changes;
  if (arguments.downtime_limit_ms) changes.downtime = from_seconds(*arguments.downtime_limit_ms / 1e3);
  if (arguments.timeout_s) changes.timeout = from_seconds(*arguments.timeout_s);
  TRY(parse_optional(arguments.bandwidth, "--bandwidth", changes.bandwidth));
  TRY(parse_optional(arguments.dirty_limit, "--dirty-limit", changes.dirty_limit));
  changes.max_rounds = arguments.max_rounds;
  changes.throttle_initial = arguments.throttle_initial;
  changes.throttle_increment = arguments.throttle_increment;
  changes.throttle_maximum = arguments.throttle_max;
  if (arguments.throttle) changes.throttle = *arguments.throttle == "auto";
  if (arguments.on_timeout) changes.on_timeout = on_timeout_of(*arguments.on_timeout);
  return changes;
}

Result<migration::PostcopyLimits> postcopy_of(const PostcopyArguments& arguments) {
  migration::PostcopyLimits limits{.allowed = arguments.postcopy || arguments.after};
  if (!arguments.after) return limits;
  std::string_view text = *arguments.after;
  const auto strip = [&](std::string_view unit) {
    const bool has = text.ends_with(unit);
    if (has) text.remove_suffix(unit.size());
    return has;
  };
  const bool in_millis = strip("ms"), in_seconds = !in_millis && strip("s");
  const auto number = parse_number(text);
  constexpr uint64_t kMost = 1'000'000;
  if (!number || *number > kMost)
    return fail(ErrorKind::kUsage, "read --postcopy-after", *arguments.after,
                "give a number of rounds, or a time: 500ms, 2s");
  if (in_millis || in_seconds)
    limits.after = from_seconds(static_cast<double>(*number) / (in_millis ? 1e3 : 1));
  else
    limits.after_rounds = static_cast<uint32_t>(*number);
  return limits;
}

}  // namespace godwit::cli
