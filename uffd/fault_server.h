// Lets a process run that lacks pages (post-copy): a thread that touches one sleeps in the kernel until it is
// here. Reads those faults, asks for the pages, puts in what comes, and follows what the process does to its
// memory meanwhile. Place in the pipeline: destination, the last stage after the resume, as page_installer is
// before it. Threads: one of its own, at real-time priority, reads faults and events; any thread installs.
//
// What the process does to its memory comes as events, each of which holds the acting thread until it is
// read; so the reader here never waits for a peer.
//
// INVARIANT: a page is put in only while nothing has happened to its place. KERNEL: between the moment at
// which an event (MADV_DONTNEED, munmap, mremap) is read and the moment at which we have noted it, the kernel
// lets a copy through, and old contents would show. So reading events and noting them is one step under the
// lock that also covers each look at the map and the copy that follows. Before it is read, the kernel refuses
// the copy (EAGAIN).
//
// KERNEL: an area stays registered until its userfaultfd is closed, so memory that was never touched faults
// to us as well; it is answered with zeros. A guard region that the process lays over missing pages and
// removes again tells us nothing (6.18): until they arrive, such pages count as missing still.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/base/clock.h"
#include "uffd/missing_map.h"
#include "uffd/uffd.h"

namespace godwit::uffd {

/// With these, what the process and its children do to missing memory is told.
extern const uint64_t kFaultServerFeatures;

/// The reader of events comes first: it holds up threads of the process, bulk does not.
class FirstComeUrgent {
 public:
  void lock_urgent();
  void lock_bulk();
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::atomic<int> urgent_ = 0;
};

struct FaultFigures {
  uint64_t faults = 0;       ///< that waited for a page
  uint64_t zero_faults = 0;  ///< in memory that holds nothing
  uint64_t duplicates = 0;   ///< pages that came and were there already
  uint64_t dropped = 0;      ///< pages that came and have no place any more
  std::vector<Nanos> waits;  ///< from reading the fault to having put the page in
};

class FaultServer {
 public:
  /// Called on the server's thread, without a lock: ask the peer for the page of that origin. May not block
  /// for long.
  using Ask = std::function<void(RemoteAddr origin)>;
  /// A userfaultfd of a child that the process forked: whoever else keeps the process's own should keep it.
  using Keep = std::function<void(int uffd)>;

  /// `uffd`: of kFaultServerFeatures, non-blocking, registered for missing pages wherever the process has
  /// private anonymous memory; all of `missing` lies in there and is absent. ORDER: from here on whoever
  /// touches such memory gets an answer; before, it sleeps. Errors: System.
  static Result<std::unique_ptr<FaultServer>> start(Uffd uffd, PageSet missing, Ask ask, Keep keep);
  /// Stops answering and closes. SAFETY: with pages missing, and nobody else to hold the userfaultfd open,
  /// the process would read zeros instead of them.
  ~FaultServer();
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  /// Makes the pages of `origin` hold `bytes`, wherever they are missing. `urgent`: somebody waits for one of
  /// them. Errors: Retry, when the kernel refuses for seconds; System.
  Status install(AddressRange origin, std::span<const std::byte> bytes, bool urgent);
  /// The same for zeros.
  Status install_zeros(AddressRange origin, bool urgent);

  /// By origin: ascending, disjoint.
  [[nodiscard]] std::vector<AddressRange> missing();
  /// By origin: those that a thread waits for.
  [[nodiscard]] std::vector<RemoteAddr> waited_for();
  /// Nothing is missing any more, in any process. False after `patience`.
  bool await_resident(Nanos patience);
  [[nodiscard]] FaultFigures figures();

 private:
  /// An address space: of the process, or of a child that it forked while pages were missing.
  struct Space {
    Uffd uffd;
    MissingMap missing;
    std::map<RemoteAddr, Nanos> waiting;  ///< by where they stand now, since when
    bool dead = false;                    ///< it exited or called execve
    std::vector<AddressRange> open;       ///< let through, and not registered again yet
  };
  struct Retry {
    Space* space;
    RemoteAddr page;
    bool write;
    Nanos since;
  };
  /// Fresh memory that is touched page after page.
  struct Stream {
    RemoteAddr next;
    unsigned faults = 0;
  };

  FaultServer(Uffd uffd, PageSet missing, Ask ask, Keep keep, Fd stop);
  void serve();
  void wait(bool again);
  void answer_all();
  void drain(Space& space);
  void take(Space& space, const uffd_msg& message);
  void take_fault(Space& space, RemoteAddr page, bool write, Nanos since);
  void take_fork(Space& parent, int child);
  void vacate(Space& space, AddressRange range);
  void answer_zero(Space& space, RemoteAddr page, bool write, Nanos since);
  static void let_through(Space& space, RemoteAddr page);
  static void close_again(Space& space);
  AddressRange widen(const Space& space, RemoteAddr page);
  void bury_dead(bool look);
  Status install_chunk(AddressRange origin, std::span<const std::byte> bytes);
  Status fill(Space& space, AddressRange now, std::span<const std::byte> bytes);
  void arrived(Space& space, AddressRange now);
  void note_if_resident();

  Ask ask_;
  Keep keep_;
  Fd stop_;
  FirstComeUrgent gate_;
  std::list<Space> spaces_;       // all that follows: with the gate
  std::vector<Retry> retries_;    // faults that the kernel did not let us answer yet
  std::vector<RemoteAddr> asks_;  // origins to ask for once the gate is open
  std::array<Stream, 8> streams_{};
  size_t oldest_ = 0;
  FaultFigures figures_;
  Nanos buried_at_{};
  std::mutex resident_mutex_;
  std::condition_variable resident_changed_;
  bool resident_ = false;
  std::thread thread_;
};

}  // namespace godwit::uffd
