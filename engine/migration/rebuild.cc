#include "engine/migration/rebuild.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/fault_point.h"
#include "engine/base/log.h"
#include "engine/base/missing_uapi.h"
#include "engine/base/pidfd.h"
#include "engine/base/realtime.h"
#include "engine/base/warm_memory.h"
#include "engine/codec/decoder.h"
#include "engine/migration/join_areas.h"
#include "engine/state/foreign_path.h"
#include "engine/state/house.h"
#include "engine/state/memory_objects.h"
#include "engine/state/scheduling.h"
#include "engine/wire/layout_messages.h"
#include "engine/wire/postcopy.pb.h"

namespace godwit::migration {
namespace {

constexpr Nanos kLongestFreeze = std::chrono::seconds(2);

/// Descriptors are parked from here until the process' own numbers are placed; within the hard limit of this
/// engine, whose soft limit is raised to it.
int parking_base() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int>(std::min<rlim_t>(limit.rlim_max / 2, 1 << 16));
}

/// Ranges whose list fits the data of a batch.
constexpr size_t kEmptiedAtOnce = 16384;

/// linux/fcntl.h (6.15): PIDFD_SELF_THREAD_GROUP.
constexpr int kPidfdSelf = -10001;

/// Is any id of the process, or of one of its threads, in use in this pid namespace?
bool any_taken(const wire::ProcessNode& node) {
  const auto taken = [](int id) { return ::access(fmt::format("/proc/{}", id).c_str(), F_OK) == 0; };
  return taken(node.pid()) || std::any_of(node.tids().begin(), node.tids().end(), taken);
}

/// Where a `syscall` instruction stands in the vdso, which is the same in every process of this kernel.
Result<uint64_t> syscall_in_vdso(uint64_t size) {
  const auto* own = reinterpret_cast<const unsigned char*>(::getauxval(AT_SYSINFO_EHDR));
  for (uint64_t i = 0; own != nullptr && i + 1 < size; ++i) {
    if (own[i] == 0x0f && own[i + 1] == 0x05) return i;
  }
  return fail(ErrorKind::kUnsupported, "find a syscall instruction", "the vdso of this kernel");
}

Error in_record(Error error, const wire::Record& record) {
  error.subject = error.subject.empty() ? record.name() : error.subject + " in " + record.name();
  return error;
}

/// Absent pages of private anonymous memory read as zeros; of anything else, as the file or object says.
uffd::Absent absent_at(const Layout& layout, RemoteAddr at) {
  const Vma* vma = find_vma(layout, at);
  return vma != nullptr && vma->kind == VmaKind::kAnonymous ? uffd::Absent::kZero : uffd::Absent::kOther;
}

/// Areas whose first arrivals go by UFFDIO_COPY are private anonymous memory, except where faults make huge
/// pages. hugetlbfs is never registered: there UFFDIO_COPY takes whole huge pages only.
std::vector<AddressRange> anonymous_ranges(const Layout& layout, bool huge) {
  std::vector<AddressRange> ranges;
  for (const Vma& vma : layout) {
    if (vma.kind == VmaKind::kAnonymous && vma.huge_page == 0 && vma.has_flag("hg") == huge)
      ranges.push_back(vma.range);
  }
  return ranges;
}

bool in_file(const Vma* vma) {
  return vma != nullptr && vma->kind == VmaKind::kFileShared;
}

/// SAFETY: a shell is written to by force, and holds more than what was described: the code that works for
/// us in it. So every page lies in an area of the layout, and in none that is the kernel's own.
Status require_described(const Layout& layout, AddressRange range, const char* what) {
  while (!range.empty()) {
    const Vma* vma = find_vma(layout, range.start);
    if (vma == nullptr || vma->kind == VmaKind::kVdso || vma->kind == VmaKind::kVsyscall)
      return fail(ErrorKind::kCorrupt, what, fmt::format("{}", range),
                  vma == nullptr ? "it lies outside the mappings that were described"
                                 : "it lies in memory of the kernel");
    range.start = std::min(range.end, vma->range.end);
  }
  return {};
}

/// An install failed: what should be there and what is, for a person to compare.
Error beside_map(Error error, pid_t pid, const Vma* area, AddressRange part) {
  std::string here;
  const auto process = tracee::Process::open(pid);
  const auto now = process.ok() ? process.value().layout() : Result<Layout>(process.error());
  for (const Vma& vma : now.ok() ? now.value() : Layout()) {
    if (vma.range.overlaps(part)) here += (here.empty() ? "" : ", ") + to_text(vma);
  }
  error.remedy = fmt::format("in {} there should be {} and there is {}", part,
                             area == nullptr ? "nothing" : to_text(*area), here.empty() ? "nothing" : here);
  return error;
}

/// Calls install(area, part) for the parts of `range`, each within one area; nullptr where there is none.
template <typename Install>
Status in_areas(pid_t pid, const Layout& layout, AddressRange range, const Install& install) {
  while (!range.empty()) {
    const Vma* vma = find_vma(layout, range.start);
    AddressRange part = range;
    if (vma != nullptr) part.end = std::min(part.end, vma->range.end);
    Status installed = install(vma, part);
    if (!installed.ok()) return beside_map(installed.take_error(), pid, vma, part);
    range.start = part.end;
  }
  return {};
}

Status write_at(int fd, uint64_t offset, std::span<const std::byte> bytes, const wire::Record& record) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return in_record(fail_errno("write a mapped file", ""), record);
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

}  // namespace

Rebuild::~Rebuild() {
  if (!thread_) return;
  // The shell belongs to its thread; unreleased it dies with it.
  (void)thread_->call([this]() -> Status {
    context_.reset();
    shell_.reset();
    return {};
  });
}

Status Rebuild::on_shell(const std::function<Status(state::BuildContext&)>& work) {
  if (!shell_)
    return fail(ErrorKind::kCorrupt, "rebuild a process", "", "the stream has no inventory before this");
  return thread_->call([&] {
    std::optional<RealtimeBoost> boost;
    boost_if(is_urgent(), boost);
    return work(*context_);
  });
}

// ---- the shell
// ---------------------------------------------------------------------------------------------------

Status Rebuild::begin(const wire::Inventory& inventory) {
  if (shell_)
    return fail(ErrorKind::kCorrupt, "rebuild a process", "inventory", "the stream has a second inventory");
  if (inventory.tree().nodes_size() != 1)
    return fail(ErrorKind::kUnsupported, "rebuild a process tree",
                fmt::format("{} processes", inventory.tree().nodes_size()),
                "this version moves single processes");
  const wire::ProcessNode& node = inventory.tree().nodes(0);
  const auto wrong = [](int id) { return id <= 0; };
  if (wrong(node.pid()) || std::any_of(node.tids().begin(), node.tids().end(), wrong))
    return fail(ErrorKind::kCorrupt, "rebuild a process", "inventory",
                fmt::format("pid {}, or one of its threads, is no number of a process", node.pid()));
  for (const std::string& address : inventory.moved_addresses()) intent_.moved_addresses.push_back(address);
  thread_ = TRY(tracee::ShellThread::start());
  const bool taken = where_ == PidNamespace::kAuto && any_taken(inventory.tree().nodes(0));
  TRY(spawn(inventory, taken || where_ == PidNamespace::kNew));
  warm_memory();
  installer_ = TRY(uffd::PageInstaller::create(pid_));
  return {};
}

Status Rebuild::spawn(const wire::Inventory& inventory, bool new_namespace) {
  tracee::ShellOptions options;
  options.pid = inventory.tree().nodes(0).pid();
  options.new_pid_namespace = new_namespace;
  options.monotonic_offset = Nanos(inventory.monotonic_offset());
  options.boottime_offset = Nanos(inventory.boottime_offset());
  return thread_->call([&]() -> Status {
    shell_ = TRY(tracee::Shell::spawn(options));
    pid_ = shell_->pid();
    inner_pid_ = shell_->inner_pid();
    context_ = std::make_unique<state::BuildContext>(
        state::BuildContext{.shell = *shell_, .pid = inner_pid_, .intent = intent_});
    context_->addresses_arrive_later = inventory.addresses_move();
    context_->parking_base = parking_base();
    return {};
  });
}

// ---- records
// -----------------------------------------------------------------------------------------------------

Status Rebuild::take(const wire::Record& record) {
  using enum wire::RecordType;
  if (prepared_)
    return fail(ErrorKind::kCorrupt, "rebuild a process", record.name(),
                "nothing may follow the end of the state");
  switch (record.type) {
    case kDescription:
      return describe(TRY(wire::parse<wire::RoomState>(record)));
    case kLayout:
      return follow(TRY(wire::parse<wire::LayoutMessage>(record)));
    case kPages:
      return install_pages(record);
    case kObjectPages:
      return install_object_pages(record);
    case kPacked:
      return take_packed(record);
    case kDiscard:
      return discard(TRY(wire::parse<wire::Discard>(record)), record);
    case kLastRound:
      return begin_last_round();
    case kRoundEnd:
      urgent_until_ = 0;  // it was a bad instant, and the process runs on
      return {};
    case kPostcopy:
      return prepare_postcopy();
    case kMissing:
      return lack(TRY(wire::parse<wire::Missing>(record)), record);
    case kPageHashes:
      return check_.expect(TRY(wire::parse<wire::PageHashes>(record)), space_.layout());
    case kState:
      return finish_state(TRY(wire::parse<wire::RoomState>(record)), record);
    case kEndOfState:
      return seal();
    case kRoundBegin:
    case kFrozen:
      return {};
    default:
      return fail(ErrorKind::kCorrupt, "rebuild a process", record.name(), "it has no place here");
  }
}

Status Rebuild::begin_last_round() {
  const std::lock_guard alone(ground_);
  if (installer_) installer_->end_fresh();
  // Of an attempt at a bad instant nothing stays: all of it comes again.
  finished_rooms_.clear();
  deferred_.clear();
  check_ = {};
  if (postcopy_ != nullptr) postcopy_->begin_list();
  urgent_until_ = (monotonic_now() + kLongestFreeze).count();
  return on_shell([](state::BuildContext& context) -> Status {
    state::hurry_all(context.shell);
    return {};
  });
}

Status Rebuild::describe(const wire::RoomState& message) {
  TRY(fault_point("describe"));
  if (message.room() == "memory-objects") return make_objects(message);
  return on_shell([&](state::BuildContext& context) { return state::prepare_room(context, message); });
}

Status Rebuild::make_objects(const wire::RoomState& message) {
  const auto list = TRY(state::parse_message<wire::MemoryObjects>(message.room(), message.payload()));
  std::vector<state::SharedObject> made;
  TRY(on_shell([&](state::BuildContext& context) -> Status {
    for (const auto& object : list.objects()) {
      TRY(state::create_object(context, object));
      made.push_back(context.objects.at(object.id()));
    }
    return {};
  }));
  for (int i = 0; i < list.objects_size(); ++i) {
    const state::SharedObject& object = made[static_cast<size_t>(i)];
    Fd fd = TRY(state::open_object(pid_, object));
    objects_[object.id] = std::make_unique<ObjectFile>(std::move(fd), list.objects(i).huge_page() != 0);
  }
  return {};
}

Status Rebuild::follow(const wire::LayoutMessage& message) {
  TRY(fault_point("layout"));
  const Layout next = TRY(wire::to_layout(message));
  const std::lock_guard alone(ground_);
  file_.reset();  // another file may stand at its path now
  // Unmapping and mapping under a registered range is the kernel's business: it unregisters what goes.
  TRY(on_shell([&](state::BuildContext& context) { return space_.follow(context, next); }));
  if (!fresh_) TRY(begin_fresh());
  fresh_ = true;
  const auto register_all = [&]() -> Status {
    if (!installer_->is_fresh()) return {};
    return installer_->register_fresh(anonymous_ranges(space_.layout(), false),
                                      anonymous_ranges(space_.layout(), true));
  };
  TRY(register_all());
  return join_areas(pid_, space_.layout(), *installer_, [&](AddressRange part) -> Status {
    TRY(on_shell([&](state::BuildContext& context) { return space_.renew(context, part); }));
    return register_all();
  });
}

Status Rebuild::begin_fresh() {
  installer_->begin_fresh(TRY(uffd::Uffd::adopt(TRY(make_userfaultfd()), 0)));
  return {};
}

/// Made by the shell and taken out, as on the source.
Result<Fd> Rebuild::make_userfaultfd() {
  int number = -1;
  TRY(on_shell([&](state::BuildContext& context) -> Status {
    tracee::Batch batch;
    const size_t made = batch.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}, "userfaultfd in the shell");
    TRY(context.run(batch));
    number = static_cast<int>(batch.result(made));
    return {};
  }));
  const PidFd pidfd = TRY(PidFd::open(pid_));
  Fd mine = TRY(pidfd.get_fd(number));
  TRY(on_shell([&](state::BuildContext&) -> Status {
    ::close(number);
    return {};
  }));
  return mine;
}

// ---- post-copy
// ---------------------------------------------------------------------------------------------------

/// While the original runs.
Status Rebuild::prepare_postcopy() {
  if (postcopy_ == nullptr || !shell_)
    return fail(ErrorKind::kCorrupt, "make ready for post-copy", "postcopy", "it has no place here");
  if (postcopy_->is_ready()) return {};
  return postcopy_->make_ready(TRY(make_userfaultfd()), pid_);
}

/// Copies that are not the last version go at once, while the source still sends.
Status Rebuild::lack(const wire::Missing& message, const wire::Record& record) {
  if (postcopy_ == nullptr || !fresh_ || installer_->is_fresh())
    return fail(ErrorKind::kCorrupt, "note missing pages", record.name(), "it has no place here");
  auto stale = postcopy_->lack(message, space_.layout());
  if (!stale.ok()) return in_record(stale.take_error(), record);
  return empty(stale.value(), MADV_DONTNEED);
}

// ---- memory
// ------------------------------------------------------------------------------------------------------

Status Rebuild::install_pages(const wire::Record& record) {
  const std::shared_lock together(ground_);
  if (!installer_)
    return fail(ErrorKind::kCorrupt, "install pages", record.name(), "no process is being built");
  auto batch = TRY(wire::PageBatchReader::open(record));
  if (batch.process() != 0)
    return fail(ErrorKind::kCorrupt, "install pages", record.name(), "it names an unknown process");
  DeltaBatch deltas(*installer_);
  while (const auto entry = batch.next()) {
    Status installed = require_described(space_.layout(), entry->range(), "install pages");
    if (installed.ok()) installed = install_entry(*entry, deltas, record);
    if (!installed.ok()) return in_record(installed.take_error(), record);
    pages_installed_ += entry->pages;
  }
  Status installed = deltas.flush();
  if (!installed.ok()) return in_record(installed.take_error(), record);
  return {};
}

/// Each lane's thread has its own room for what was packed.
Status Rebuild::take_packed(const wire::Record& record) {
  static thread_local wire::Unpacker unpacker;
  return take(TRY(unpacker.unpack(record)));
}

Status Rebuild::install_entry(const wire::PageEntry& entry, DeltaBatch& deltas, const wire::Record& record) {
  if (entry.encoding == wire::PageEncoding::kXbzrle) return deltas.add(RemoteAddr(entry.at), entry.payload);
  // ORDER: a page may stand in a record more than once.
  TRY(deltas.flush());
  switch (entry.encoding) {
    case wire::PageEncoding::kRaw:
      return install_bytes(entry.range(), entry.payload, record);
    case wire::PageEncoding::kZero:
      return install_zeros(entry.range(), record);
    default:
      return fail(ErrorKind::kUnsupported, "install pages", fmt::format("{}", entry.range()),
                  "encoding not negotiated");
  }
}

/// Pages of shared files go to the file: its mapping may be read-only by now, and then nobody can write
/// there.
Status Rebuild::install_bytes(AddressRange range, std::span<const std::byte> bytes,
                              const wire::Record& record) {
  return in_areas(pid_, space_.layout(), range, [&](const Vma* vma, AddressRange part) {
    const auto piece = bytes.subspan(part.start - range.start, part.size());
    return in_file(vma) ? write_to_file(*vma, part, piece, record) : installer_->install_run(part, piece);
  });
}

Status Rebuild::install_zeros(AddressRange range, const wire::Record& record) {
  static const std::vector<std::byte> kZeros(64_KiB);
  return in_areas(pid_, space_.layout(), range, [&](const Vma* vma, AddressRange part) -> Status {
    if (!in_file(vma)) return installer_->install_zeros(part, absent_at(space_.layout(), part.start));
    for (RemoteAddr at = part.start; at < part.end; at = at + kZeros.size()) {
      const AddressRange piece = intersect(part, {at, at + kZeros.size()});
      TRY(write_to_file(*vma, piece, std::span(kZeros).first(piece.size()), record));
    }
    return {};
  });
}

/// What lies behind its end stays away from it, as with a mapping.
Status Rebuild::write_to_file(const Vma& vma, AddressRange part, std::span<const std::byte> bytes,
                              const wire::Record& record) {
  const auto file = TRY(file_to_write(vma.path, record));
  struct stat found {};
  if (::fstat(file->fd.get(), &found) != 0)
    return in_record(fail_errno("ask for the size of a mapped file", vma.path), record);
  const uint64_t offset = vma.offset + (part.start - vma.range.start);
  const auto size = static_cast<uint64_t>(found.st_size);
  if (offset >= size) return {};
  return write_at(file->fd.get(), offset, bytes.first(std::min<uint64_t>(bytes.size(), size - offset)),
                  record);
}

/// The last one stays open, for scattered pages of one file come one after the other. Each caller has its
/// share of it: another thread may turn to another file meanwhile.
Result<std::shared_ptr<const Rebuild::MappedFile>> Rebuild::file_to_write(const std::string& path,
                                                                          const wire::Record& record) {
  const std::lock_guard lock(file_lock_);
  if (file_ && file_->path == path) return file_;
  auto opened = state::open_foreign_file(path, true, "open a mapped file to write");
  if (!opened.ok()) return in_record(opened.take_error(), record);
  file_ = std::make_shared<const MappedFile>(MappedFile{path, opened.take()});
  return file_;
}

Status Rebuild::install_object_pages(const wire::Record& record) {
  auto batch = TRY(wire::PageBatchReader::open(record));
  const auto object = objects_.find(batch.object());
  if (object == objects_.end())
    return fail(ErrorKind::kCorrupt, "install pages of a shared object", record.name(),
                "the object was never announced");
  static const std::vector<std::byte> kZeros(1_MiB);
  while (const auto entry = batch.next()) {
    if (entry->encoding == wire::PageEncoding::kRaw) {
      Status written = object->second->write(entry->at, entry->payload);
      if (!written.ok()) return in_record(written.take_error(), record);
    } else if (entry->encoding == wire::PageEncoding::kZero) {
      for (size_t done = 0; done < entry->bytes(); done += kZeros.size()) {
        const size_t part = std::min(kZeros.size(), entry->bytes() - done);
        Status written = object->second->write(entry->at + done, std::span(kZeros).first(part));
        if (!written.ok()) return in_record(written.take_error(), record);
      }
    } else {
      return fail(ErrorKind::kUnsupported, "install pages of a shared object", record.name(),
                  "encoding not negotiated");
    }
    pages_installed_ += entry->pages;
  }
  return {};
}

Status Rebuild::discard(const wire::Discard& message, const wire::Record& record) {
  const auto ranges = TRY(wire::to_ranges(message.ranges()));
  TRY(require_all_described(ranges, "discard pages", record));
  return empty(ranges, message.guard() ? uapi::kMadvGuardInstall : MADV_DONTNEED);
}

Status Rebuild::require_all_described(const std::vector<AddressRange>& ranges, const char* what,
                                      const wire::Record& record) const {
  for (const AddressRange& range : ranges) {
    Status inside = require_described(space_.layout(), range, what);
    if (!inside.ok()) return in_record(inside.take_error(), record);
  }
  return {};
}

/// A process that wrote all over its memory has tens of thousands of these, in a freeze.
Status Rebuild::empty(const std::vector<AddressRange>& ranges, int advice) {
  const std::lock_guard alone(ground_);
  std::span<const AddressRange> left = ranges;
  while (left.size() > 1 && TRY(empty_many(left.first(std::min(left.size(), kEmptiedAtOnce)), advice)))
    left = left.subspan(std::min(left.size(), kEmptiedAtOnce));
  tracee::Batch batch;
  for (const AddressRange& range : left)
    batch.call(SYS_madvise, {range.start, range.size(), advice},
               left.size() > 1 ? "madvise" : fmt::format("madvise {} of {}", advice, range));
  if (batch.empty()) return {};
  return on_shell([&](state::BuildContext& context) { return context.run(batch); });
}

/// KERNEL: since 6.13 a process may give itself any advice for many ranges at once, and name itself as
/// PIDFD_SELF since 6.15. False: this one does not know how, or did a part only; again is no harm.
Result<bool> Rebuild::empty_many(std::span<const AddressRange> ranges, int advice) {
  constexpr size_t kMostRanges = 1024;  // UIO_MAXIOV
  tracee::Batch batch;
  std::vector<std::pair<size_t, uint64_t>> calls;
  for (size_t i = 0; i < ranges.size(); i += kMostRanges) {
    std::vector<iovec> list;
    uint64_t size = 0;
    for (const AddressRange& range : ranges.subspan(i, std::min(kMostRanges, ranges.size() - i))) {
      list.push_back({reinterpret_cast<void*>(range.start.value()), range.size()});
      size += range.size();
    }
    const auto data = batch.put(std::as_bytes(std::span(list)));
    calls.emplace_back(batch.call_may_fail(SYS_process_madvise, {kPidfdSelf, data, list.size(), advice, 0},
                                           "process_madvise"),
                       size);
  }
  TRY(on_shell([&](state::BuildContext& context) { return context.run(batch); }));
  return std::all_of(calls.begin(), calls.end(), [&](const auto& call) {
    return batch.result(call.first) == static_cast<int64_t>(call.second);
  });
}

// ---- the end
// -----------------------------------------------------------------------------------------------------

Status Rebuild::finish_state(const wire::RoomState& message, const wire::Record& record) {
  TRY(fault_point("finish-state"));
  if (!finished_rooms_.insert(message.room()).second)
    return fail(ErrorKind::kCorrupt, "finish " + message.room(), record.name(),
                "the state of this room has come already");
  if (TRY(state::waits_for_memory(message.room()))) {
    deferred_.push_back(message);
    return {};
  }
  return finish_room(message);
}

Status Rebuild::finish_room(const wire::RoomState& message) {
  const Nanos begin = monotonic_now();
  TRY(on_shell([&](state::BuildContext& context) { return state::finish_room(context, message); }));
  log_debug("{} finished in {} us", message.room(), to_micros(monotonic_now() - begin));
  return {};
}

Status Rebuild::finish_deferred() {
  TRY(on_shell(&state::trim_objects));
  TRY(on_shell([&](state::BuildContext& context) { return space_.finish_protections(context); }));
  for (const wire::RoomState& message : deferred_) TRY(finish_room(message));
  return on_shell([&](state::BuildContext& context) -> Status {
    state::close_objects(context);
    return {};
  });
}

Status Rebuild::seal() {
  // ORDER: before the rooms that write to memory themselves.
  if (installer_) TRY(check_.compare(pid_, space_.layout(), *installer_));
  file_.reset();     // the process may execute it: not while somebody can write to it
  objects_.clear();  // nor can they be sealed while somebody maps them to write
  // ORDER: everything has been installed. What touches missing memory from here on waits for it.
  if (postcopy_ != nullptr && postcopy_->lacks()) TRY(postcopy_->start(space_.layout()));
  TRY(finish_deferred());
  prepared_ = true;
  return {};
}

Status Rebuild::resume() {
  CHECK(prepared_ && !released_);
  const Layout& layout = space_.layout();
  const auto vdso =
      std::find_if(layout.begin(), layout.end(), [](const Vma& v) { return v.path == "[vdso]"; });
  if (vdso == layout.end())
    return fail(ErrorKind::kUnsupported, "resume a process", "its layout", "it has no vdso");
  const RemoteAddr insn = vdso->range.start + TRY(syscall_in_vdso(vdso->range.size()));
  return on_shell([&](state::BuildContext& context) -> Status {
    for (const auto& action : context.at_resume) TRY(action());
    TRY(shell_->release(insn));
    released_ = true;
    children_ = shell_->children();
    return {};
  });
}

}  // namespace godwit::migration
