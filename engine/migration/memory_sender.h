// The source's half of the memory pipeline: tracker -> reader -> encoder -> page records, for one process.
// Decides nothing: precopy.cc says when to do a round, this says what a round is. One thread drives it.
#pragma once

#include <vector>

#include "engine/migration/lane_set.h"
#include "engine/model/dirty_tracker.h"
#include "engine/model/page_set.h"
#include "engine/model/vma.h"
#include "engine/model/write_log.h"
#include "engine/tracee/memory.h"

namespace godwit::migration {

class MemorySender {
 public:
  MemorySender(const tracee::Memory& memory, DirtyTracker& tracker, std::vector<std::unique_ptr<Lane>> lanes)
      : memory_(memory), tracker_(tracker), lanes_(std::move(lanes)) {}

  /// Takes over the layout: vanished areas are forgotten, new ones wait for track(). Private-file and
  /// anonymous areas are carried in rounds; shared files only in the last pass (their storage may be common
  /// to both hosts).
  void follow(const Layout& layout);
  /// True if the last collect() met areas that are tracked no more: follow() even the layout that it knows.
  [[nodiscard]] bool has_lost_some() const { return lost_some_; }
  /// True if there are areas that are not under the tracker yet.
  [[nodiscard]] bool has_untracked() const { return !unregistered_.empty(); }
  /// Puts them there, as they are in `now`, the layout of a process that stands still.
  Status track(const Layout& now);

  /// Pages written since the last collect, for a round. INVARIANT: whatever is written after a page was
  /// collected is collected again, so that reading later than the scan can only send something newer.
  /// `guide`: where alone to look in areas that an earlier collect() went through; ascending. What it does
  /// not name stays marked as written, for a collect() without it.
  Result<PageRuns> collect(const std::vector<AddressRange>* guide = nullptr);
  /// As many writes as a guide may name and be quicker than a look at everything.
  [[nodiscard]] size_t worth_guiding() const { return held_.size() / kPagesALook; }
  /// What that collect told may be read too early: it counts as written at the next look, too.
  void distrust(const PageRuns& collected);
  /// For the freeze: written pages of all areas, shared files included, and (in `discarded`) those that the
  /// destination holds and the source does not any more; `guards`: guard regions.
  struct LastPass {
    PageRuns written;
    std::vector<AddressRange> discarded;
    std::vector<AddressRange> guards;
  };
  /// `log`: what was written since a mark that was set before the last collect(); then only the rest of
  /// memory is looked at. nullptr, or a blind one: everything is.
  Result<LastPass> survey(const WrittenSince* log);
  /// After that collect(), target running: looks where nothing is, for a survey() by the log will not.
  Status rest();

  /// Reads, encodes, sends and flushes: LaneSet::send.
  Status send(const PageRuns& runs, LaneSet::Pass pass);

  [[nodiscard]] PageCounts counts() const;
  [[nodiscard]] uint64_t raw_bytes() const { return raw_bytes_; }  ///< of the pages sent
  [[nodiscard]] uint64_t wire_bytes() const { return lanes_.wire_bytes(); }

 private:
  Status collect_in(AddressRange area, const std::vector<AddressRange>* guide, PageRuns& found);
  Status add_unmarked(PageRuns& found);
  Status mark_anew(AddressRange range);
  [[nodiscard]] bool log_can_tell(const Vma& vma) const;
  Result<bool> is_exact(const Vma& vma) const;
  Status survey_logged(const WrittenSince& log, LastPass& last);
  [[nodiscard]] Status cache_locked_files() const;
  Status survey_all(const Vma& vma, LastPass& last);
  Status survey_changes(const Vma& vma, LastPass& last);
  Status add_reverted(const Vma& vma, LastPass& last);
  void widen_huge(std::vector<AddressRange>& discarded);
  Status add_emptied(const Vma& vma, const PageRuns& told, LastPass& last);
  void add_written(const Vma& vma, const PageRun& run, LastPass& last);
  void forget(AddressRange range);

  /// A look at one page costs as much as passing by so many clean ones (bench `tracker`).
  static constexpr uint64_t kPagesALook = 400;

  const tracee::Memory& memory_;
  DirtyTracker& tracker_;
  LaneSet lanes_;
  Layout layout_;                           ///< what is mapped now
  std::vector<AddressRange> tracked_;       ///< under the tracker, or wanted there; ascending
  std::vector<AddressRange> unregistered_;  ///< wanted, but not under the tracker yet
  bool lost_some_ = false;                  ///< the last collect() met areas that are tracked no more
  std::vector<AddressRange> untrackable_;   ///< re-sent whole in the freeze
  std::vector<AddressRange>
      fresh_;  ///< tracked since the last collect: every populated page counts as written
  std::vector<AddressRange> clean_;    ///< areas that the last collect() went through, or a guide; ascending
  std::vector<AddressRange> rested_;   ///< of those, what the log can tell all about; empty before rest()
  std::vector<AddressRange> exact_;    ///< of those, what it can tell to the page
  LastPass at_rest_;                   ///< what was gone or guarded in them at rest()
  PageSet held_;                       ///< what the destination has got from us
  PageSet shared_files_;               ///< pages of shared files written since the start
  uint64_t sent_ = 0, discarded_ = 0;  ///< pages
  uint64_t raw_bytes_ = 0;
};

}  // namespace godwit::migration
