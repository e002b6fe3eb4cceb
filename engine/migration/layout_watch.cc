#include "engine/migration/layout_watch.h"

#include "engine/state/address_space.h"

namespace godwit::migration {
namespace {

std::optional<uint64_t> count_changes(WriteLog* log) {
  if (log == nullptr) return std::nullopt;
  const auto changes = log->changes();
  return changes.ok() ? std::optional(changes.value()) : std::nullopt;
}

}  // namespace

Result<Layout> LayoutWatch::in_detail(WriteLog* log) {
  // ORDER: before the look, so that what changes during it counts as later.
  details_as_of_ = count_changes(log);
  locked_ = TRY(process_.locked_memory());
  return process_.detailed_layout();
}

bool LayoutWatch::knows_details(WriteLog* log) const {
  return details_as_of_ && details_as_of_ == count_changes(log);
}

Result<Layout> LayoutWatch::look(const Layout& known, WriteLog* log) {
  const std::optional<uint64_t> now = details_as_of_ ? count_changes(log) : std::nullopt;
  if (now && now == seen_as_of_) return seen_;
  Layout layout = TRY(process_.layout());
  if (!state::inherit_details(layout, known)) layout = TRY(process_.detailed_layout());
  seen_as_of_ = now;
  seen_ = layout;
  return layout;
}

Result<Layout> LayoutWatch::look_frozen(const Layout& known, WriteLog* log) {
  if (!knows_details(log) && locked_ != TRY(process_.locked_memory())) return process_.detailed_layout();
  return look(known, log);
}

}  // namespace godwit::migration
