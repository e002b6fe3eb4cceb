// An io_uring with one owner. One thread at a time.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "engine/base/result.h"

namespace godwit::transport {

class Ring {
 public:
  struct Completion {
    uint64_t tag;  ///< user_data of its submission
    int result;    ///< as the system call's: a count, or minus errno
  };

  /// Errors: Unsupported (no io_uring in this kernel), Denied (a sandbox), System.
  static Result<Ring> create(unsigned entries);

  /// An entry to be filled in by an io_uring_prep_* and sent off by submit(); null when the queue is full.
  io_uring_sqe* next_entry();
  /// Hands what was prepared to the kernel and says how many it took: all, unless it is out of memory.
  /// Errors: System.
  Result<unsigned> submit();
  /// The next completion if there is one already; no system call.
  std::optional<Completion> poll();
  /// The next completion; blocks. Errors: System.
  Result<Completion> wait();

 private:
  struct Exit {
    void operator()(io_uring* ring) const;
  };
  explicit Ring(io_uring* ring) : ring_(ring) {}
  Completion consume(io_uring_cqe* entry);

  std::unique_ptr<io_uring, Exit> ring_;
};

}  // namespace godwit::transport
