// The last look at memory, in the freeze: what was written since the last round, and what is gone.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/kernel_features.h"
#include "engine/codec/zero_page.h"
#include "engine/migration/carried.h"
#include "engine/migration/memory_sender.h"

namespace godwit::migration {

/// What the log hears is the faults of private anonymous memory. Our own injected calls write to the lowest
/// pages of the main stack (tracee/bare_call.h), unheard.
bool MemorySender::log_can_tell(const Vma& vma) const {
  return vma.kind == VmaKind::kAnonymous && !vma.shared && vma.huge_page == 0 && vma.path != "[stack]" &&
         is_in(clean_, vma.range) && !touch(untrackable_, vma.range) && !touch(fresh_, vma.range);
}

/// Where a write fault opens its page and no other, and is not an error.
Result<bool> MemorySender::is_exact(const Vma& vma) const {
  const bool writable = (vma.prot & PROT_WRITE) != 0 && vma.protection_key == 0;
  if (!writable || vma.has_flag("hg") || touch(at_rest_.guards, vma.range)) return false;
  return !TRY(tracker_.has_huge_pages(vma.range));
}

Status MemorySender::rest() {
  rested_.clear();
  exact_.clear();
  at_rest_ = {};
  const bool huge_unasked = makes_huge_pages_unasked();
  for (const Vma& vma : layout_) {
    if (!is_carried(vma) || !log_can_tell(vma)) continue;
    TRY(survey_changes(vma, at_rest_));
    rested_.push_back(vma.range);
    if (!huge_unasked && TRY(is_exact(vma))) exact_.push_back(vma.range);
  }
  at_rest_.written.clear();  // the log tells of them
  return {};
}

Result<MemorySender::LastPass> MemorySender::survey(const WrittenSince* log) {
  LastPass last;
  const bool told = log != nullptr && log->blind.empty();
  if (told) TRY(survey_logged(*log, last));
  for (const Vma& vma : layout_) {
    if (!is_carried(vma) || (told && is_in(rested_, vma.range))) continue;
    // Where nothing tells written from clean, every populated page counts as written.
    const bool blind = touch(untrackable_, vma.range) || touch(fresh_, vma.range);
    if (blind)
      TRY(survey_all(vma, last));
    else
      TRY(survey_changes(vma, last));
  }
  TRY(cache_locked_files());
  for (const AddressRange& range : shared_files_.runs()) last.written.push_back({range, true, true});
  widen_huge(last.discarded);
  for (const AddressRange& range : last.discarded) discarded_ += range.pages();
  return last;
}

/// Of hugetlbfs whole huge pages are discarded, however much of one was sent.
void MemorySender::widen_huge(std::vector<AddressRange>& discarded) {
  PageSet huge;
  std::erase_if(discarded, [&](AddressRange range) {
    const Vma* vma = find_vma(layout_, range.start);
    if (vma == nullptr || vma->huge_page == 0) return false;
    constexpr uint64_t kWithin = kHugePageSize - 1;
    huge.insert(range_of(range.start.value() & ~kWithin, (range.end.value() + kWithin) & ~kWithin));
    return true;
  });
  for (const AddressRange& range : huge.runs()) {
    discarded.push_back(range);
    // The process may run on after this freeze: what is not there any more is not known either.
    lanes_.discard(range);
  }
}

/// Pages of shared files are read whether they are present or not. KERNEL: where one was discarded and the
/// tracker's mark is left, in a locked mapping, the fault never ends unless the page cache has the page
/// (filemap_fault_recheck_pte_none() takes the mark for somebody else's page, 6.9 to 6.18 at least).
Status MemorySender::cache_locked_files() const {
  for (const Vma& vma : layout_) {
    if (vma.kind != VmaKind::kFileShared || !vma.has_flag("lo")) continue;
    const std::vector<AddressRange> runs = shared_files_.runs_in(vma.range);
    if (runs.empty()) continue;
    const std::string path = fmt::format("/proc/{}/map_files/{}", memory_.pid(), vma.range);
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return fail_errno("open a locked mapping's file", path);
    for (const AddressRange& run : runs) {
      for (RemoteAddr at = run.start; at < run.end; at = at + kPageSize) {
        std::byte byte;
        const uint64_t offset = vma.offset + (at - vma.range.start);
        if (::pread(file.get(), &byte, 1, static_cast<off_t>(offset)) < 0)
          return fail_errno("read a locked mapping's file", vma.path);
      }
    }
  }
  return {};
}

/// The log tells where to look, and the page tables tell what was written; or the log tells that, too.
Status MemorySender::survey_logged(const WrittenSince& log, LastPass& last) {
  PageSet gone;
  for (const AddressRange& range : at_rest_.discarded) gone.insert(range);
  for (const AddressRange& area : rested_) {
    if (log.pages && is_in(exact_, area)) {
      for (const AddressRange& part : parts_in(*log.pages, area)) {
        gone.erase(part);
        last.written.push_back({part, true, true});
      }
      continue;
    }
    for (const AddressRange& part : parts_in(log.around, area)) {
      for (const PageRun& run : TRY(tracker_.last_pass(part))) {
        if (!run.present) continue;
        gone.erase(run.range);
        last.written.push_back(run);
      }
    }
  }
  last.discarded = gone.runs();
  last.guards = at_rest_.guards;
  return {};
}

void MemorySender::add_written(const Vma& vma, const PageRun& run, LastPass& last) {
  if (run.guard) last.guards.push_back(run.range);
  if (!is_own(vma, run)) return;
  if (vma.kind == VmaKind::kFileShared)
    shared_files_.insert(run.range);
  else
    last.written.push_back(run);
}

/// The cheap look: the kernel tells only what is written or absent.
Status MemorySender::survey_changes(const Vma& vma, LastPass& last) {
  std::vector<AddressRange> gone;
  const PageRuns told = TRY(tracker_.last_pass(vma.range));
  for (const PageRun& run : told) {
    add_written(vma, run, last);
    if (!run.present && !vma.shared) gone.push_back(run.range);
  }
  if (vma.huge_page != 0) TRY(add_emptied(vma, told, last));
  if (vma.kind == VmaKind::kFilePrivate) return add_reverted(vma, last);
  // Of what is gone at the source, what the destination holds.
  for (const AddressRange& held : held_.runs_in(gone)) last.discarded.push_back(held);
  return {};
}

/// KERNEL: of a private file mapping, a page that was discarded and looked at again shows its file, and keeps
/// the mark of the page before: clean and present, it is in no answer of the cheap look. So the pages that
/// the destination holds, a program's initialised data as a rule, are asked whose they are.
Status MemorySender::add_reverted(const Vma& vma, LastPass& last) {
  for (const AddressRange& held : held_.runs_in(vma.range)) {
    PageSet reverted;
    reverted.insert(held);
    for (const PageRun& run : TRY(tracker_.survey(held))) {
      if (is_own(vma, run)) reverted.erase(run.range);
    }
    for (const AddressRange& range : reverted.runs()) last.discarded.push_back(range);
  }
  return {};
}

/// KERNEL: a discarded page of hugetlbfs that is read again comes back empty and keeps the mark of the page
/// before (hugetlb_no_page() takes it over from the marker): present and clean, and not what was sent. A page
/// that was not zeros when it was sent tells: it can have become so by nothing else without losing the mark.
Status MemorySender::add_emptied(const Vma& vma, const PageRuns& told, LastPass& last) {
  PageSet quiet;
  for (const AddressRange& held : held_.runs_in(vma.range)) quiet.insert(held);
  for (const PageRun& run : told) quiet.erase(run.range);
  std::vector<AddressRange> filled;
  for (const AddressRange& run : quiet.runs()) {
    const RemoteAddr first(run.start.value() & ~(kHugePageSize - 1));
    for (RemoteAddr at = first; at < run.end; at = at + kHugePageSize) {
      if (const auto page = lanes_.find_filled(at)) filled.push_back({*page, *page + kPageSize});
    }
  }
  std::vector<std::byte> bytes(filled.size() * kPageSize);
  TRY(memory_.read_ranges(filled, bytes));
  for (size_t i = 0; i < filled.size(); ++i) {
    const std::span<const std::byte, kPageSize> page(bytes.data() + i * kPageSize, kPageSize);
    if (!codec::is_zero_page(page)) continue;
    const RemoteAddr start(filled[i].start.value() & ~(kHugePageSize - 1));
    last.written.push_back({{start, start + kHugePageSize}, true, true});
  }
  return {};
}

Status MemorySender::survey_all(const Vma& vma, LastPass& last) {
  PageSet missing;
  for (const AddressRange& range : held_.runs_in(vma.range)) missing.insert(range);
  for (const PageRun& run : TRY(tracker_.survey(vma.range))) {
    add_written(vma, run, last);
    if (is_own(vma, run)) missing.erase(run.range);
  }
  if (vma.shared) return {};
  for (const AddressRange& range : missing.runs()) last.discarded.push_back(range);
  return {};
}

}  // namespace godwit::migration
