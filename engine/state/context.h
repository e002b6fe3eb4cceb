// What the doors of a room are given. Source side: CheckContext (process running, nothing touched) and
// CaptureContext (running, or frozen). Destination side: BuildContext (the shell, on its thread).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/fd.h"
#include "engine/base/result.h"
#include "engine/model/vma.h"
#include "engine/state/finding.h"
#include "engine/state/open_file.h"
#include "engine/tracee/batch.h"
#include "engine/tracee/frozen.h"
#include "engine/tracee/memory.h"
#include "engine/tracee/process.h"
#include "engine/tracee/shell.h"
#include "engine/wire/rooms_process.pb.h"
#include "engine/wire/state.pb.h"

namespace godwit::ebpf {
class OpenFiles;
struct OpenFileFacts;
}  // namespace godwit::ebpf

namespace godwit::state {

/// What the person asked for, as far as rooms care.
struct Intent {
  std::vector<std::string> moved_addresses;  ///< --move-address, as plain addresses: "10.0.0.5"
  bool to_file = false;                      ///< checkpoint: no peer, connections cannot be kept
};

struct CheckContext {
  const tracee::Process& process;
  const tracee::Memory& memory;
  const Layout& layout;  ///< detailed: with VmFlags
  const std::vector<OpenFile>& files;
  const Intent& intent;
  const wire::HostFacts* destination;  ///< null when nobody was asked
};

class UnixDiag;

/// What the registers do not tell of a call that the freeze interrupted.
struct InterruptedCall {
  /// Its number: the kernel goes on with an interrupted sleep in restart_syscall(), which hides it. -1: not
  /// known.
  long number = -1;
  std::optional<wire::TimedWait> wait;  ///< if it ends by itself, and the kernel could be asked when
};

/// What a thread has to say about itself that several rooms need: each question stops at the thread once
/// more.
struct ThreadView {
  pid_t inner = 0;          ///< its id in its own pid namespace
  std::string status;       ///< /proc/PID/task/TID/status
  uint32_t securebits = 0;  ///< the rest is what only the thread itself can be asked
  int dumpable = 0;
  uint64_t timer_slack = 0;
  uint64_t clear_child_tid = 0;
  std::string alternate_stack;  ///< a stack_t
};

struct CaptureContext {
  const tracee::Process& process;
  const tracee::Memory& memory;
  const Intent& intent;
  Layout layout;
  std::vector<OpenFile> files;
  tracee::Frozen* frozen = nullptr;       ///< null while the process runs (the description)
  tracee::BatchRunner* runner = nullptr;  ///< runs calls on a frozen thread; null while the process runs
  /// What must be put back if the migration is given up after this capture (TCP_REPAIR off, ...). Run in
  /// reverse.
  std::vector<std::function<void()>> undo;
  std::shared_ptr<UnixDiag> unix_diag;           ///< opened by the first unix socket
  std::map<pid_t, InterruptedCall> interrupted;  ///< by thread

  std::map<pid_t, ThreadView> views;  ///< filled by view_of(), frozen only

  ebpf::OpenFiles* open_files = nullptr;  ///< of the process; null where BPF is not to be had
  /// What it said, in this freeze; filled by the first room that needs it.
  std::shared_ptr<const std::vector<ebpf::OpenFileFacts>> file_facts;

  [[nodiscard]] pid_t pid() const { return process.pid(); }
};

/// An object of shared memory (memfd, shared anonymous): carried once, mapped and opened from several places.
struct SharedObject {
  uint64_t id = 0;    ///< as the source named it (device and inode of the object there)
  int fd = -1;        ///< in the shell's table while it is built
  uint64_t size = 0;  ///< at the source
  uint64_t room = 0;  ///< what it has here meanwhile, at least `size`
};

/// The id of an object of shared memory on the source; both numbers as /proc/PID/maps prints them.
constexpr uint64_t object_key(uint64_t device, uint64_t inode) {
  return device >> 32 << 52 ^ device << 40 ^ inode;
}

/// What the clocks of the process show more than this engine's; never less than the truth minus some
/// microseconds.
struct ClockLead {
  Nanos monotonic{}, boottime{};
};

struct BuildContext {
  tracee::Shell& shell;
  pid_t pid = 0;  ///< inner pid of the process
  const Intent& intent;
  bool addresses_arrive_later = false;  ///< bind to addresses that this host gets only at the resume
  std::map<uint64_t, SharedObject> objects;
  /// The lowest number from which descriptors may be parked while the process' own numbers are not placed
  /// yet. What stands below it when the descriptors room finishes, and is not the process's, is closed.
  int parking_base = 0;
  /// Kept from prepare() to finish() by the descriptors room, all parked: open file descriptions by key, and
  /// both ends of pipes and socket pairs, of which those descriptions are made.
  std::map<std::string, int> prepared;
  std::map<std::string, int> anchors;
  std::optional<ClockLead> clock_lead;  ///< asked for by the first thread that needs it
  /// Run on the shell's thread once COMMIT is here, right before the process runs (TCP_REPAIR off, ...).
  std::vector<std::function<Status()>> at_resume;

  Status run(tracee::Batch& batch) { return shell.run(pid, batch); }  ///< on the leader
};

}  // namespace godwit::state
