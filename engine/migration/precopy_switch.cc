// The freeze of a pre-copy that ends in post-copy: what the peer has to have nevertheless, and what it lacks.
#include <fmt/format.h>

#include "engine/migration/carried.h"
#include "engine/migration/missing_message.h"
#include "engine/migration/precopy.h"
#include "engine/state/kernel_pages.h"

namespace godwit::migration {

/// What takes time is made ready while the process runs.
Status Precopy::prepare_switch() {
  if (!options_.on_switch)
    return fail(ErrorKind::kUsage, "switch to post-copy", fmt::format("pid {}", process_.pid()),
                "an image has nobody who could ask for pages: use another strategy");
  switch_ = true;
  return options_.on_switch();
}

Status Precopy::find_needed(const std::vector<wire::RoomState>& states) {
  for (const wire::RoomState& state : states) {
    if (state.room() == "threads") needed_ = TRY(state::kernel_pages(state, *memory_));
  }
  return {};
}

/// What can be fetched when it is touched becomes missing; the rest is returned.
PageRuns Precopy::withhold(const PageRuns& written) {
  PageSet pushed, left;
  for (const PageRun& run : written) {
    for (AddressRange rest = run.range; !rest.empty();) {
      const Vma* vma = find_vma(layout_, rest.start);
      const AddressRange part = vma == nullptr ? rest : intersect(rest, vma->range);
      (vma != nullptr && can_be_missing(*vma) ? left : pushed).insert(part);
      rest.start = part.end;
    }
  }
  for (const AddressRange& range : needed_) {
    for (const AddressRange& part : left.runs_in(range)) pushed.insert(part);
    left.erase(range);
  }
  missing_ = left.runs();
  PageRuns runs;
  for (const AddressRange& range : pushed.runs()) runs.push_back({range, true, true});
  return runs;
}

Status Precopy::tell_missing() {
  return each_missing_message(missing_, [this](const wire::Missing& message) {
    return writers_.front()->write_message(wire::RecordType::kMissing, message);
  });
}

std::vector<AddressRange> Precopy::hot() const {
  PageSet written;
  for (const PageRun& run : written_last_) written.insert(run.range);
  return written.runs_in(missing_);
}

}  // namespace godwit::migration
