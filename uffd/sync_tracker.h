// Sees writes by synchronous write-protection, for kernels without UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN
// (5.14 to 6.6): a write to a clean page waits until a thread of ours has taken the protection off, and the
// mark with it; /proc/PID/pagemap shows what has none. Place in the pipeline: the first stage on the source,
// instead of wp_tracker. Thread: one at a time (reading the page tables uses helper threads of its own; the
// handler has its own, too).
//
// As with wp_tracker the page tables alone tell what is written, not a list of faults: a page that was never
// there when the others were protected has no mark, and a discarded one that comes back has none.
// What the caller must know beyond DirtyTracker and wp_tracker's remarks, which hold here too:
//  - Only private anonymous memory can be tracked: track() gives all else back. Of that, collect() tells the
//    populated pages that belong to a file, each time: what is written through a shared mapping may have been
//    unmapped by reclaim before the freeze. The process' own pages there are for the freeze.
//  - While this engine is stopped or hangs, so is every thread of the process that writes. A dead one does
//    not hold it: its end closes the userfaultfd, which wakes everybody and ends all protection.
//  - KERNEL: ptrace(POKE) and writes to /proc/PID/mem by anybody fail on a clean page (EIO): that way into
//    the kernel cannot wait for a handler.
#pragma once

#include "engine/base/helper_pool.h"
#include "engine/model/dirty_tracker.h"
#include "uffd/fault_handler.h"
#include "uffd/pagemap.h"
#include "uffd/run_lists.h"
#include "uffd/uffd.h"

namespace godwit::uffd {

class SyncTracker final : public DirtyTracker {
 public:
  /// `fresh` was made by userfaultfd(2) inside process `pid`, without UFFD_USER_MODE_ONLY: the kernel's own
  /// writes to its memory fault, too. `scan_threads` counts the caller. Errors: Unsupported (no
  /// write-protection, or pagemap does not show it), TargetGone, Denied, System.
  static Result<std::unique_ptr<SyncTracker>> create(pid_t pid, Fd fresh, unsigned scan_threads = 2);
  ~SyncTracker() override;

  Result<std::vector<AddressRange>> track(const std::vector<AddressRange>& ranges) override;
  void layout_changed() override {}
  Result<PageRuns> collect(AddressRange range) override;
  Status unmark(AddressRange range) override;
  Result<PageRuns> survey(AddressRange range) override;
  Result<PageRuns> last_pass(AddressRange range) override;
  Result<bool> has_huge_pages(AddressRange) override { return true; }
  void fault_on_each(bool each) override { handler_->open_ahead(!each); }
  void release() override;

  /// Faults that were answered so far.
  [[nodiscard]] uint64_t faults() const { return handler_ ? handler_->answered() : 0; }

 private:
  enum class Coverage : uint8_t { kTracked, kUntrackable, kLost };
  struct Part {
    AddressRange range;
    Coverage coverage;
  };
  /// What a look at page tables is to find.
  enum class Look : uint8_t { kCollect, kSurvey, kLastPass };
  struct Answer {
    PageRuns runs;
    Status status;
  };

  SyncTracker(pid_t pid, Uffd uffd, Fd pagemap, unsigned scan_threads);
  [[nodiscard]] Result<std::vector<Part>> parts_of(AddressRange range) const;
  [[nodiscard]] Coverage coverage_of(AddressRange area) const;
  Status look(Look look, const Part& part, PageRuns& found);
  Status look_at_once(Look look, const Part& part, std::span<uint64_t> scratch, PageRuns& found) const;
  Status look_in_pieces(Look look, const Part& part, PageRuns& found);
  Result<PageRuns> look_everywhere(Look look, AddressRange range);

  pid_t pid_;
  Uffd uffd_;
  Fd pagemap_;
  std::vector<AddressRange> untrackable_;  // ascending
  OwedRuns owed_;
  std::vector<std::vector<uint64_t>> scratch_;  // one a thread
  std::vector<Answer> answers_;                 // kept between looks for their room
  HelperPool pool_;
  std::unique_ptr<FaultHandler> handler_;
};

}  // namespace godwit::uffd
