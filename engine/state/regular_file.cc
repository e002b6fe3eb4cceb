#include "engine/state/regular_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <set>

#include "engine/base/files.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/foreign_path.h"
#include "engine/state/memory_objects.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = kRegularFileRoom;
constexpr long kMqueueMagic = 0x19800202;  // ipc/mqueue.c
/// What open(2) of an existing file may be given again. O_ASYNC comes with its owner, later.
constexpr int kOpenFlags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_DIRECT | O_LARGEFILE |
                           O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_PATH;

bool claims(const OpenFile& file) {
  if (!file.link.starts_with('/')) return false;
  // Files of the kernel's own mounts: their links are names that no path leads to.
  for (const std::string_view hidden : {"/memfd:", "/secretmem", "/dmabuf:"})
    if (file.link.starts_with(hidden) && file.status.st_nlink == 0) return false;
  const auto mode = file.status.st_mode;
  return S_ISREG(mode) || S_ISDIR(mode) || (file.flags & O_PATH) != 0;
}

/// What a file without a name is opened with again, by its number.
constexpr int kReopenFlags = kOpenFlags & ~(O_DIRECTORY | O_NOFOLLOW | O_PATH);

/// The name still leads to the file, in the process's own view of the file system.
bool name_leads_there(const tracee::Process& process, const OpenFile& file) {
  struct stat status {};
  if (file.status.st_nlink == 0 || ::lstat(process.path("root" + file.link).c_str(), &status) != 0)
    return false;
  return status.st_dev == file.status.st_dev && status.st_ino == file.status.st_ino;
}

bool has_lock(const OpenFile& file) {
  return field(file.fdinfo, "lock:").has_value();
}

Finding nameless(const OpenFile& file) {
  return {std::string(kRoom),
          file.subject(),
          "an open file that its name does not lead to",
          "another file took its name, or it is a deleted directory, so that it cannot be opened on the "
          "destination",
          "close it, or give it its name again (ln via /proc/PID/fd)",
          true};
}

/// Deleted, and carried with its contents. Files of huge pages cannot be written.
bool is_carried(const tracee::Process& process, const OpenFile& file) {
  struct statfs filesystem {};
  const std::string magic_link = process.path(fmt::format("fd/{}", file.number()));
  return is_unnamed_file(file) &&
         (::statfs(magic_link.c_str(), &filesystem) != 0 || filesystem.f_type != HUGETLBFS_MAGIC);
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  if (!name_leads_there(ctx.process, file) && !is_carried(ctx.process, file))
    findings.push_back(nameless(file));
  struct statfs filesystem {};
  const std::string magic_link = ctx.process.path(fmt::format("fd/{}", file.number()));
  if ((file.flags & O_PATH) == 0 && ::statfs(magic_link.c_str(), &filesystem) == 0 &&
      filesystem.f_type == kMqueueMagic)
    findings.push_back({std::string(kRoom), file.subject(), "a POSIX message queue",
                        "its messages and notifications live in this kernel alone",
                        "close it before the migration", true});
  if (has_lock(file))
    findings.push_back({std::string(kRoom), file.subject(), "a file lock or lease",
                        "the freeze waits for an instant without it",
                        "nothing, if the program unlocks in time", false});
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  const bool carried = is_carried(ctx.process, file);
  if (!carried && !name_leads_there(ctx.process, file)) {
    // check() refuses what stays like this: it was opened since, and will be closed in a moment (a journal,
    // say).
    return capture_error(ErrorKind::kRetry, nameless(file));
  }
  if (ctx.frozen != nullptr && has_lock(file))
    return fail(ErrorKind::kRetry, "capture a file lock", file.subject(),
                "a lock is held; the migration needs an instant without one");
  wire::RegularFileState state;
  state.set_path(file.link);
  state.set_flags(static_cast<uint32_t>(file.flags & kOpenFlags));
  state.set_mode(file.status.st_mode);
  state.set_size(static_cast<uint64_t>(file.status.st_size));
  state.set_position(file.position);
  state.set_device(file.status.st_dev);
  state.set_inode(file.status.st_ino);
  if (carried) {
    state.set_object(object_of(file.status));
    state.set_uid(file.status.st_uid);
    state.set_gid(file.status.st_gid);
  }
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::RegularFileState>(kRoom, message);
  if (!state.ok()) return "damaged";
  return fmt::format("{}:{}", state.value().device(), state.value().inode());
}

/// Whoever may make a link on this host could turn the writes of the process elsewhere. The flag that keeps
/// from following one would stay with the file, so it is found first, and then opened.
Result<int> open_to_write(const std::string& path, int flags) {
  const Fd found(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat status {};
  if (!found.valid() || ::fstat(found.get(), &status) != 0)
    return fail_errno("open a file of the process", path);
  if (S_ISLNK(status.st_mode))
    return fail(ErrorKind::kUnsupported, "open a file of the process to write", path,
                "it is a symbolic link on this host, and is not written through: put the file itself there");
  return reopen(found.get(), flags | O_NOCTTY, path);
}

Result<int> prepare(BuildContext& ctx, std::string_view message) {
  const auto state = TRY(parse_message<wire::RegularFileState>(kRoom, message));
  if (state.object() != 0)
    return reopen(TRY(descriptor_of(ctx, state.object(), state.path())),
                  static_cast<int>(state.flags()) & kReopenFlags, state.path());
  TRY(require_plain_path(state.path(), "open a file of the process"));
  const int flags = static_cast<int>(state.flags()) & kOpenFlags;
  struct stat status {};
  // Before the open, which may block on a named pipe or do something on a device.
  const int looked = (flags & O_NOFOLLOW) != 0 ? ::lstat(state.path().c_str(), &status)
                                               : ::stat(state.path().c_str(), &status);
  if (looked != 0) return fail_errno("find an open file of the process on this host", state.path());
  if ((status.st_mode & S_IFMT) != (state.mode() & S_IFMT))
    return fail(ErrorKind::kUnsupported, "open a file of the process", state.path(),
                "it is something else on this host: make both hosts see the same file");
  const bool writes = (flags & O_PATH) == 0 && (flags & O_ACCMODE) != O_RDONLY;
  if (writes && (flags & O_NOFOLLOW) == 0) return open_to_write(state.path(), flags);
  const int fd = ::open(state.path().c_str(), flags | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return fail_errno("open a file of the process", state.path());
  return fd;
}

Status give_owner(int fd, const wire::RegularFileState& state) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_errno("fstat", state.path());
  if (status.st_nlink != 0)
    return fail(ErrorKind::kCorrupt, "give a deleted file its owner", state.path(),
                "it is a file of this host that has a name");
  if (::fchown(fd, state.uid(), state.gid()) != 0) return fail_errno("fchown", state.path());
  if (::fchmod(fd, state.mode() & 07777) != 0) return fail_errno("fchmod", state.path());
  return {};
}

Status finish(BuildContext&, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::RegularFileState>(kRoom, message));
  if ((state.flags() & O_PATH) != 0) return {};
  struct stat status {};
  if (::fstat(fd, &status) != 0) return fail_errno("fstat", state.path());
  if (state.object() != 0)
    TRY(give_owner(fd, state));  // its size and contents arrive with the memory
  else if (S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) != state.size())
    return fail(
        ErrorKind::kUnsupported, "open a file of the process",
        fmt::format("{} ({} bytes here, {} on the source)", state.path(), status.st_size, state.size()),
        "the file must be the same on both hosts: put it on a file system that both share");
  if (::lseek(fd, state.position(), SEEK_SET) != state.position())
    return fail_errno(fmt::format("lseek to {}", state.position()), state.path());
  return {};
}

}  // namespace

DescriptorRoom regular_file_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

namespace {

/// Of every regular file with a room here: by what the process may do with it, by any of its descriptions.
void sort_paths(const std::vector<OpenFile>& files, std::set<std::string>& read,
                std::set<std::string>& written) {
  for (const OpenFile& file : files) {
    if (!claims(file) || !S_ISREG(file.status.st_mode) || is_unnamed_file(file)) continue;
    const bool writes = (file.flags & O_PATH) == 0 && (file.flags & O_ACCMODE) != O_RDONLY;
    (writes ? written : read).insert(file.link);
  }
  for (const std::string& path : written) read.erase(path);
}

}  // namespace

std::vector<std::string> collect_paths(const std::vector<OpenFile>& files) {
  std::set<std::string> read, written;
  sort_paths(files, read, written);
  return {read.begin(), read.end()};
}

std::vector<std::string> collect_written_paths(const std::vector<OpenFile>& files) {
  std::set<std::string> read, written;
  sort_paths(files, read, written);
  return {written.begin(), written.end()};
}

}  // namespace godwit::state
