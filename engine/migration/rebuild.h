// The destination's half of the pipeline: records -> decoder -> installer -> shell. One object is one process
// being rebuilt, from a peer or from an image; it does not know which. Destroyed before resume(), it leaves
// nothing.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/result.h"
#include "engine/migration/delta_batch.h"
#include "engine/migration/memory_check.h"
#include "engine/migration/object_file.h"
#include "engine/migration/pid_namespace.h"
#include "engine/migration/postcopy_destination.h"
#include "engine/state/address_space.h"
#include "engine/state/context.h"
#include "engine/tracee/shell.h"
#include "engine/wire/packed_batch.h"
#include "engine/wire/page_batch_reader.h"
#include "engine/wire/record_reader.h"
#include "uffd/page_installer.h"

namespace godwit::migration {

class Rebuild {
 public:
  /// `postcopy`: who takes what is missing when it is let run; none: nothing may be.
  explicit Rebuild(PidNamespace where, PostcopyDestination* postcopy = nullptr)
      : where_(where), postcopy_(postcopy) {}
  ~Rebuild();
  Rebuild(const Rebuild&) = delete;
  Rebuild& operator=(const Rebuild&) = delete;

  /// Makes the bare shell. Once, before any other record. Errors as Shell::spawn.
  Status begin(const wire::Inventory& inventory);

  /// One record of the forward direction. Page records of different lanes may come from different threads at
  /// once; all others come from the control lane's, and never while pages of an earlier barrier are still in
  /// flight. Errors: Corrupt naming the record, and whatever the rebuilding meets.
  Status take(const wire::Record& record);

  /// Everything has arrived and is in place; only resume() is missing.
  [[nodiscard]] bool prepared() const { return prepared_; }
  /// Lets the process run. An error means that no thread of it has run.
  Status resume();

  /// The process stands still at the source, so whoever works for it here should do so at once
  /// (RealtimeBoost). For two seconds at most: no peer may keep a processor for longer.
  [[nodiscard]] bool is_urgent() const { return monotonic_now() < Nanos(urgent_until_.load()); }

  [[nodiscard]] pid_t pid() const { return pid_; }  ///< as this engine sees it
  [[nodiscard]] pid_t inner_pid() const { return inner_pid_; }
  /// What this engine has to reap after resume() (tracee::reap).
  [[nodiscard]] const std::vector<pid_t>& children() const { return children_; }
  [[nodiscard]] uint64_t pages_installed() const { return pages_installed_; }

 private:
  Status spawn(const wire::Inventory& inventory, bool new_namespace);
  Status on_shell(const std::function<Status(state::BuildContext&)>& work);
  Status begin_last_round();
  Status describe(const wire::RoomState& message);
  Status make_objects(const wire::RoomState& message);
  Status follow(const wire::LayoutMessage& message);
  Status begin_fresh();
  Result<Fd> make_userfaultfd();
  Status prepare_postcopy();
  Status lack(const wire::Missing& message, const wire::Record& record);
  Status empty(const std::vector<AddressRange>& ranges, int advice);
  Result<bool> empty_many(std::span<const AddressRange> ranges, int advice);
  Status discard(const wire::Discard& message, const wire::Record& record);
  Status require_all_described(const std::vector<AddressRange>& ranges, const char* what,
                               const wire::Record& record) const;
  Status take_packed(const wire::Record& record);
  Status install_pages(const wire::Record& record);
  Status install_entry(const wire::PageEntry& entry, DeltaBatch& deltas, const wire::Record& record);
  Status install_bytes(AddressRange range, std::span<const std::byte> bytes, const wire::Record& record);
  Status install_zeros(AddressRange range, const wire::Record& record);
  Status write_to_file(const Vma& vma, AddressRange part, std::span<const std::byte> bytes,
                       const wire::Record& record);
  struct MappedFile {
    std::string path;
    Fd fd;
  };
  Result<std::shared_ptr<const MappedFile>> file_to_write(const std::string& path,
                                                          const wire::Record& record);
  Status install_object_pages(const wire::Record& record);
  Status finish_state(const wire::RoomState& message, const wire::Record& record);
  Status finish_room(const wire::RoomState& message);
  Status finish_deferred();
  Status seal();

  PidNamespace where_;
  PostcopyDestination* postcopy_;
  pid_t pid_ = 0;
  pid_t inner_pid_ = 0;
  state::Intent intent_;
  std::unique_ptr<tracee::ShellThread> thread_;
  std::unique_ptr<tracee::Shell> shell_;          ///< used and destroyed on thread_
  std::unique_ptr<state::BuildContext> context_;  ///< used on thread_
  state::AddressSpace space_;
  std::optional<uffd::PageInstaller> installer_;
  bool fresh_ = false;
  std::map<uint64_t, std::unique_ptr<ObjectFile>> objects_;
  std::vector<wire::RoomState> deferred_;
  std::set<std::string> finished_rooms_;  ///< whose last state has come
  MemoryCheck check_;
  std::shared_mutex
      ground_;            ///< shared: pages are being installed; alone: what they are installed in changes
  std::mutex file_lock_;  ///< of file_, while pages are being installed
  std::shared_ptr<const MappedFile> file_;  ///< that pages were written to last
  std::atomic<uint64_t> pages_installed_ = 0;
  std::atomic<Nanos::rep> urgent_until_ = 0;
  std::vector<pid_t> children_;
  bool prepared_ = false;
  bool released_ = false;
};

}  // namespace godwit::migration
