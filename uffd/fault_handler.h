// Answers the write faults of a process whose memory is write-protected synchronously: takes the protection
// off, and with it the mark, and lets the thread go on. Place in the pipeline: beside sync_tracker, which
// finds in the page tables what has lost its mark. Thread: one of its own, at real-time priority.
//
// A thread of the process stands still from its fault to our answer. So here is nothing that could wait: no
// lock, no memory that is not there yet, no look at the process's pages.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <thread>

#include "uffd/uffd.h"

namespace godwit::uffd {

class FaultHandler {
 public:
  /// `uffd` must outlive it. Errors: System.
  static Result<std::unique_ptr<FaultHandler>> start(const Uffd& uffd);
  /// Stops answering. ORDER: nothing may be registered any more, or the userfaultfd be closed next.
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

  /// Whether who writes page after page is spared the fault on most of them (at first: yes).
  void open_ahead(bool ahead) { ahead_.store(ahead, std::memory_order_relaxed); }
  [[nodiscard]] uint64_t answered() const { return answered_.load(std::memory_order_relaxed); }

 private:
  /// Who writes page after page need not fault on each of them.
  struct Stream {
    RemoteAddr next;
    unsigned faults = 0;  ///< in a row
  };

  FaultHandler(const Uffd& uffd, Fd stop) : uffd_(uffd), stop_(std::move(stop)) {}
  void serve();
  void answer_some();
  void answer(RemoteAddr page);
  AddressRange widen(RemoteAddr page);

  const Uffd& uffd_;
  Fd stop_;
  std::atomic<uint64_t> answered_ = 0;
  std::atomic<bool> ahead_ = true;
  std::array<Stream, 8> streams_{};
  size_t oldest_ = 0;
  std::thread thread_;
};

}  // namespace godwit::uffd
