// A source process with descriptors of a test's choice, and a destination process that is built from what was
// captured of it: the two are compared by capturing both.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ebpf/open_files.h"
#include "engine/state/context.h"
#include "engine/state/descriptors.h"
#include "engine/tracee/frozen.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {

/// In the child: ends it, so that the test fails, when a call fails.
int must(int result);
/// In the child: moves `fd` to `number`.
void put(int fd, int number);

class Source {
 public:
  /// Forks a child without any descriptors, which runs `setup` and then waits. `kept`: descriptors of this
  /// process that the child may use; they are closed in the child when `setup` is over.
  explicit Source(const std::function<void()>& setup);
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const tracee::Process& process() const { return *process_; }
  tracee::Frozen& freeze();
  void thaw();

  /// From here on captures know what the kernel has noted of the open files. Errors: Unsupported.
  Status ask_kernel();
  Result<std::string> capture();  ///< as far as it goes: with queues when frozen
  Findings check();

 private:
  pid_t pid_ = 0;
  std::optional<tracee::Process> process_;
  std::optional<tracee::Frozen> frozen_;
  std::optional<ebpf::OpenFiles> open_files_;
};

class Destination {
 public:
  /// `monotonic_offset`: how far the process's clock is ahead of this host's.
  explicit Destination(Nanos monotonic_offset = Nanos(0));
  ~Destination();
  Destination(const Destination&) = delete;
  Destination& operator=(const Destination&) = delete;

  /// Makes the source's memfds here, with their contents.
  void carry_objects(Source& source);
  Status prepare(const std::string& description);
  Status finish(const std::string& message);
  Status resume();  ///< what is left to the resume, but the process stays parked
  Status run(const std::function<Status(BuildContext&)>& work);
  /// What a capture of the rebuilt process says.
  Result<std::string> capture(tracee::Frozen& any_frozen);
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// A duplicate of a descriptor of the rebuilt process.
  [[nodiscard]] Fd fd(int number) const;

 private:
  Intent intent_;
  std::unique_ptr<tracee::ShellThread> thread_;
  std::unique_ptr<tracee::Shell> shell_;
  std::unique_ptr<BuildContext> context_;
  pid_t pid_ = 0;
};

/// A table as text, one description a line, without what two processes cannot have in common: numbers of
/// inodes become ordinals, and the remaining time of timers is left out.
std::vector<std::string> comparable(const std::string& table);

/// "" when all is well.
std::string text(const Status& status);

/// Captures, builds, captures again, and compares; the source is looked at twice, for it must be unharmed.
/// Returns the destination for more questions.
std::unique_ptr<Destination> expect_round_trip(Source& source);

}  // namespace godwit::state
