// Puts pages into another process. Place in the pipeline: the last stage on the destination, between decoder
// and the shell that will run. Thread: begin_fresh, register_fresh and end_fresh alone; in between, several
// threads may install to and read from disjoint ranges.
//
// Two phases. In the *fresh* phase a userfaultfd is registered for missing pages and first arrivals are
// installed with UFFDIO_COPY, which spares the fault and the clearing of the page; areas that are not
// registered (MADV_HUGEPAGE ones, so that their faults make huge pages, and files, which cannot be) are
// filled by process_vm_writev. Afterwards all goes by process_vm_writev. Areas that the process itself may
// not write go by /proc/PID/mem.
//
// KERNEL: DANGER of the fresh phase: whoever touches a missing page of a registered area (this engine by
// process_vm_writev or process_vm_readv, the process itself) sleeps until somebody installs it, that is for
// ever. So everything here asks the page tables first and touches only what is present; nobody else may touch
// the process's registered memory until end_fresh, and no page may be discarded in a range while it is being
// installed to.
#pragma once

#include <span>
#include <vector>

#include "uffd/page_scan.h"
#include "uffd/uffd.h"

namespace godwit::uffd {

/// What a page reads as where nothing was ever installed.
enum class Absent : uint8_t {
  kInvalid = 0,
  kZero,   ///< private anonymous memory
  kOther,  ///< a mapping of a file or of shared memory: its own contents
};

class PageInstaller {
 public:
  /// `pid` must stay unreaped as long as the installer lives. Errors: TargetGone, Denied.
  static Result<PageInstaller> create(pid_t pid);

  /// `uffd` was made inside the process and adopted with no features. Nothing is registered yet.
  void begin_fresh(Uffd uffd) { uffd_ = std::move(uffd); }
  /// In the fresh phase: registers `ranges`, all that the process has now, for missing pages; what already is
  /// stays so. A range that cannot be registered is left to the other ways. Errors: TargetGone, System.
  /// KERNEL: an area beside a registered one, but not registered itself, gets an anon_vma of its own with its
  /// first page, and the two can then never be one area again, which the process may rely on in mremap.
  /// `left_out`: areas that may have been registered before and are not any more (an advice came).
  Status register_fresh(const std::vector<AddressRange>& ranges,
                        const std::vector<AddressRange>& left_out = {});
  [[nodiscard]] bool is_fresh() const { return uffd_.valid(); }
  /// Closes the userfaultfd: from here on the process may run. Costs a visit of every registered area.
  void end_fresh();

  /// Makes `range` hold `bytes`; both whole pages, equally long. The range is mapped; it may cross areas.
  /// Errors: TargetGone, Retry (the layout is changing), System (EFAULT, EIO: a part is not mapped or cannot
  /// be written even so).
  [[nodiscard]] Status install_run(AddressRange range, std::span<const std::byte> bytes) const;
  /// The same for single pages, ascending, with their bytes one after the other: one look at the page tables
  /// and a few calls for all of them. Errors as above.
  [[nodiscard]] Status install_scattered(std::span<const RemoteAddr> pages,
                                         std::span<const std::byte> bytes) const;
  /// Makes `range` read as zeros; where a page is absent and reads so anyway, none is made.
  [[nodiscard]] Status install_zeros(AddressRange range, Absent absent) const;
  /// Reads whole pages, ascending, into `out` (pages.size() * kPageSize bytes), as bases for XBZRLE. Absent
  /// pages of registered areas read as zeros. Errors: TargetGone, System.
  [[nodiscard]] Status read_pages(std::span<const RemoteAddr> pages, std::span<std::byte> out) const;

 private:
  struct Piece {
    RemoteAddr at;
    std::span<std::byte> out;
  };

  PageInstaller(pid_t pid, Fd memory, Fd pagemap)
      : pid_(pid), memory_(std::move(memory)), pagemap_(std::move(pagemap)) {}

  template <typename Each>  // Status each(AddressRange part, bool registered)
  [[nodiscard]] Status split_by_phase(AddressRange range, Each each) const;
  template <typename Each>  // Status each(AddressRange part, uint64_t categories), 0 where absent
  [[nodiscard]] Status split_by_presence(AddressRange range, Each each) const;
  [[nodiscard]] Status fill_missing(RemoteAddr at, std::span<const std::byte> bytes) const;
  [[nodiscard]] Status zero_missing(AddressRange range) const;
  [[nodiscard]] Status write(RemoteAddr at, std::span<const std::byte> bytes) const;
  [[nodiscard]] Status write_by_force(RemoteAddr at, std::span<const std::byte> bytes) const;
  [[nodiscard]] Status write_zeros(AddressRange range) const;
  /// Which of `pages`, ascending, may be touched without sleeping for ever.
  [[nodiscard]] Result<std::vector<bool>> find_touchable(std::span<const RemoteAddr> pages) const;
  [[nodiscard]] Status read(std::span<const Piece> plan) const;
  [[nodiscard]] Status read_by_force(const Piece& piece) const;

  pid_t pid_;
  Fd memory_;   // /proc/PID/mem
  Fd pagemap_;  // /proc/PID/pagemap
  Uffd uffd_;
  std::vector<AddressRange> fresh_;  // registered for missing pages; sorted, disjoint
};

}  // namespace godwit::uffd
