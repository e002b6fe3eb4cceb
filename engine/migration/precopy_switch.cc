// The freeze of a pre-copy that ends in post-copy: what the peer has to have nevertheless, and what it lacks.
#include <fmt/format.h>

#include "engine/migration/carried.h"
#include "engine/migration/missing_message.h"
#include "engine/migration/precopy.h"
#include "engine/state/kernel_pages.h"

namespace godwit::migration {
namespace {

/// By whether the page may be missing when the process runs.
void split(const Layout& layout, const PageRuns& runs, PageSet& may, PageSet& may_not) {
  for (const PageRun& run : runs) {
    for (AddressRange rest = run.range; !rest.empty();) {
      const Vma* vma = find_vma(layout, rest.start);
      const AddressRange part = vma == nullptr ? rest : intersect(rest, vma->range);
      (vma != nullptr && can_be_missing(*vma) ? may : may_not).insert(part);
      rest.start = part.end;
    }
  }
}

PageRuns to_runs(const PageSet& pages) {
  PageRuns runs;
  for (const AddressRange& range : pages.runs()) runs.push_back({range, true, true});
  return runs;
}

}  // namespace

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
PageRuns Precopy::withhold(const MemorySender::LastPass& last) {
  PageSet pushed, left;
  split(layout_, last.written, left, pushed);
  add_unsent(left, pushed);
  // What was kept back may lie under a guard by now: nobody can read it.
  for (const AddressRange& guard : last.guards) {
    left.erase(guard);
    pushed.erase(guard);
  }
  for (const AddressRange& range : needed_) {
    for (const AddressRange& part : left.runs_in(range)) pushed.insert(part);
    left.erase(range);
  }
  missing_ = left.runs();
  return to_runs(pushed);
}

/// Without a bulk round: what need not be there stays here until the switch. It is collected, so that what is
/// written from here on is told.
PageRuns Precopy::keep_back(const PageRuns& written) {
  PageSet sent;
  split(layout_, written, unsent_, sent);
  return to_runs(sent);
}

/// A page that was kept back may have been discarded since, or another area of anonymous memory stand there:
/// what is read when it is asked for is right in any case. Where files or huge pages stand now, everything
/// was mapped since, and counts as written; a page that shows its file must not become the process's own.
void Precopy::add_unsent(PageSet& missing, PageSet& pushed) const {
  if (unsent_.empty()) return;
  for (const Vma& vma : layout_) {
    if (vma.kind != VmaKind::kAnonymous || vma.huge_page != 0) continue;
    for (const AddressRange& run : unsent_.runs_in(vma.range))
      (can_be_missing(vma) ? missing : pushed).insert(run);
  }
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
