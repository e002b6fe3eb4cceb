// Hears every write fault of a process, so that rounds and freeze need not scan memory that nobody wrote to.
// Place in the pipeline: beside the tracker, whose marks make the first write to a page a fault; made before
// the first freeze, marked before the last round, asked in the freeze. Why it misses nothing:
// docs/decisions/write-log.md.
#pragma once

#include <sys/types.h>

#include <memory>

#include "engine/base/result.h"
#include "engine/model/write_log.h"

namespace godwit::ebpf {

class FaultLog : public WriteLog {
 public:
  /// Begins to hear the faults of `pid` (a number of this process's pid namespace): some 60 ns for each of
  /// its faults. The process must be frozen once between this and the first mark, for faults under way now
  /// are not heard. Takes some milliseconds. Errors: TargetGone; Unsupported with the reason.
  static Result<std::unique_ptr<FaultLog>> create(pid_t pid);
  ~FaultLog() override;

  std::optional<std::vector<AddressRange>> heard(size_t most) override;
  /// This or the first mark also begins to watch for what is no page fault; every system call of this machine
  /// then costs some 0.1 us more until the log is gone.
  Result<uint64_t> changes() override;
  Status mark() override;
  Result<WrittenSince> since_mark() override;

 private:
  struct Loaded;
  explicit FaultLog(std::unique_ptr<Loaded> loaded);
  std::unique_ptr<Loaded> loaded_;
};

}  // namespace godwit::ebpf
