#include "engine/state/memory_objects.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <set>

#include "engine/base/files.h"
#include "engine/state/foreign_path.h"

namespace godwit::state {
namespace {

constexpr std::string_view kMemfdPrefix = "/memfd:";
constexpr std::string_view kDeleted = " (deleted)";
#ifndef MFD_EXEC
constexpr unsigned kMfdExec = 0x10;
#else
constexpr unsigned kMfdExec = MFD_EXEC;
#endif

std::string_view without_suffix(std::string_view link) {
  if (link.ends_with(kDeleted)) link.remove_suffix(kDeleted.size());
  return link;
}

/// What is there now, which in a running process may be something else than what was seen there.
std::optional<ObjectSource> open_source(const std::string& path) {
  ObjectSource source;
  source.fd = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st {};
  if (!source.fd.valid() || ::fstat(source.fd.get(), &st) != 0) return std::nullopt;
  const auto link = read_link(fmt::format("/proc/self/fd/{}", source.fd.get()));
  if (!link.ok()) return std::nullopt;
  std::string_view name = link.value();  // "/memfd:NAME (deleted)" or "/dev/zero (deleted)"
  source.info.set_id(object_of(st));
  source.info.set_size(static_cast<uint64_t>(st.st_size));
  source.info.set_kind(wire::MemoryObject::SHARED_ANONYMOUS);
  if (name.starts_with(kMemfdPrefix)) {
    source.info.set_kind(wire::MemoryObject::MEMFD);
    name.remove_prefix(kMemfdPrefix.size());
    source.info.set_name(std::string(without_suffix(name)));
    const bool executable = (st.st_mode & 0111) != 0;
    source.info.set_memfd_flags(MFD_ALLOW_SEALING | (executable ? kMfdExec : 0u));
  }
  struct statfs filesystem {};
  if (::fstatfs(source.fd.get(), &filesystem) != 0) return std::nullopt;
  if (filesystem.f_type == HUGETLBFS_MAGIC)
    source.info.set_huge_page(static_cast<uint64_t>(filesystem.f_bsize));
  return source;
}

/// Anonymous shared memory exists only behind a mapping: it is mapped for a moment, and taken from map_files.
Result<int> create_shared_anonymous(BuildContext& context, const wire::MemoryObject& object) {
  const uint64_t size = object.size();
  const int flags =
      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | (object.huge_page() != 0 ? MAP_HUGETLB | MAP_HUGE_2MB : 0);
  tracee::Batch map;
  const size_t at =
      map.call(SYS_mmap, {0, size, PROT_READ | PROT_WRITE, flags, -1, 0}, "map shared anonymous memory");
  TRY(context.run(map));
  const auto start = static_cast<uint64_t>(map.result(at));
  const std::string path =
      fmt::format("/proc/{}/map_files/{:x}-{:x}", context.shell.pid(), start, start + page_ceil(size));
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  const int err = errno;
  tracee::Batch unmap;
  unmap.call(SYS_munmap, {start, size}, "unmap shared anonymous memory");
  Status unmapped = context.run(unmap);
  if (fd < 0) return fail_errno("open", path, err);
  if (!unmapped.ok()) {
    ::close(fd);
    return unmapped.take_error();
  }
  return fd;
}

Result<int> create_memfd(const wire::MemoryObject& object) {
  const unsigned huge = object.huge_page() != 0 ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  const int fd = ::memfd_create(object.name().c_str(), object.memfd_flags() | huge | MFD_CLOEXEC);
  if (fd < 0) return fail_errno("memfd_create", object.name());
  if (::ftruncate(fd, static_cast<off_t>(object.size())) != 0) {
    Error error = fail_errno("ftruncate a memfd", object.name());
    ::close(fd);
    return error;
  }
  return fd;
}

/// Without a name from the beginning, in the directory in which it once had one: it is of that file system.
Result<int> create_unnamed_file(const wire::MemoryObject& object) {
  const std::string directory = object.name().substr(0, object.name().rfind('/') + 1);
  TRY(require_plain_path(object.name(), "make a deleted file"));
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) {
    Error error = fail_errno("make a file without a name (O_TMPFILE)", directory);
    error.remedy = "this host needs that directory, on a file system that can do that";
    return error;
  }
  if (::ftruncate(fd, static_cast<off_t>(object.size())) == 0) return fd;
  Error error = fail_errno("ftruncate a deleted file", object.name());
  ::close(fd);
  return error;
}

Result<int> create(BuildContext& context, const wire::MemoryObject& object) {
  switch (object.kind()) {
    case wire::MemoryObject::MEMFD:
      return create_memfd(object);
    case wire::MemoryObject::SHARED_ANONYMOUS:
      return create_shared_anonymous(context, object);
    case wire::MemoryObject::UNNAMED_FILE:
      return create_unnamed_file(object);
    default:
      return fail(ErrorKind::kUnsupported, "make a memory object", fmt::format("object {:#x}", object.id()),
                  "its kind is not known here: use the same version on both sides");
  }
}

Status give_room(SharedObject& object, uint64_t room) {
  if (object.room == room) return {};
  if (::ftruncate(object.fd, static_cast<off_t>(room)) != 0)
    return fail_errno("ftruncate a memory object", fmt::format("object {:#x}", object.id));
  object.room = room;
  return {};
}

Status resize(SharedObject& object, uint64_t size) {
  object.size = size;
  return give_room(object, size);
}

}  // namespace

bool shows_object(const Vma& vma) {
  return vma.kind == VmaKind::kShmem ||
         (vma.kind == VmaKind::kFilePrivate && vma.path.starts_with(kMemfdPrefix));
}

bool is_unnamed_file(const OpenFile& file) {
  // Files of the kernel's own mounts were never in a directory: their links are no paths.
  for (const std::string_view hidden :
       {kMemfdPrefix, std::string_view("/secretmem"), std::string_view("/dmabuf:")})
    if (file.link.starts_with(hidden)) return false;
  return S_ISREG(file.status.st_mode) && file.status.st_nlink == 0 && file.link.starts_with('/') &&
         (file.flags & O_PATH) == 0;
}

uint64_t object_of(const struct stat& status) {
  return object_key(uint64_t{major(status.st_dev)} << 32 | minor(status.st_dev), status.st_ino);
}

Result<std::vector<ObjectSource>> find_objects(const tracee::Process& process, const Layout& layout,
                                               const std::vector<OpenFile>& files) {
  std::vector<ObjectSource> found;
  std::set<uint64_t> known;
  const auto add = [&](std::optional<ObjectSource> source) {
    if (source && known.insert(source->info.id()).second) found.push_back(std::move(*source));
  };
  for (const Vma& vma : layout) {
    if (!shows_object(vma)) continue;
    auto source = open_source(process.path(fmt::format("map_files/{}", vma.range)));
    if (source && source->info.id() == object_key(vma.device, vma.inode)) add(std::move(source));
  }
  for (const OpenFile& file : files) {
    const bool unnamed = is_unnamed_file(file);
    if (!unnamed && !file.link.starts_with(kMemfdPrefix)) continue;
    auto source = open_source(process.path(fmt::format("fd/{}", file.number())));
    // Another file may have that number by now.
    if (!source || source->info.id() != object_of(file.status)) continue;
    if (unnamed) {
      source->info.set_kind(wire::MemoryObject::UNNAMED_FILE);
      source->info.set_name(std::string(without_suffix(file.link)));
    }
    if (unnamed || source->info.kind() == wire::MemoryObject::MEMFD) add(std::move(source));
  }
  return found;
}

Status create_object(BuildContext& context, const wire::MemoryObject& object) {
  if (object.huge_page() != 0 && object.huge_page() != kHugePageSize)
    return fail(ErrorKind::kCorrupt, "make a memory object", object.name(),
                "pages of a size that is not carried");
  const auto known = context.objects.find(object.id());
  if (known != context.objects.end()) return resize(known->second, object.size());
  const int fd = TRY(create(context, object));
  const int parked = ::fcntl(fd, F_DUPFD_CLOEXEC, context.parking_base);
  ::close(fd);
  if (parked < 0) return fail_errno("park the descriptor of a memory object", object.name());
  context.objects[object.id()] = {object.id(), parked, object.size(), object.size()};
  return {};
}

Status fit_object(BuildContext& context, uint64_t id, uint64_t end) {
  SharedObject& object = context.objects.at(id);
  return give_room(object, std::max(object.room, end));
}

/// Their last pages arrived whole.
Status trim_objects(BuildContext& context) {
  for (auto& [id, object] : context.objects) {
    struct stat now {};
    if (::fstat(object.fd, &now) != 0)
      return fail_errno("fstat a memory object", fmt::format("object {:#x}", object.id));
    object.room = static_cast<uint64_t>(now.st_size);
    TRY(give_room(object, object.size));
  }
  return {};
}

void close_objects(BuildContext& context) {
  for (auto& [id, object] : context.objects) ::close(object.fd);
  context.objects.clear();
}

Result<int> descriptor_of(const BuildContext& context, uint64_t id, const std::string& subject) {
  const auto object = context.objects.find(id);
  if (object != context.objects.end() && object->second.fd >= 0) return object->second.fd;
  return fail(
      ErrorKind::kCorrupt, "open a memory object of the process", subject,
      "it did not arrive before its descriptor: the stream is damaged, or from an incompatible version");
}

Result<Fd> open_object(pid_t shell, const SharedObject& object) {
  const std::string path = fmt::format("/proc/{}/fd/{}", shell, object.fd);
  Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd.valid()) return fail_errno("open a memory object of the shell", path);
  return fd;
}

}  // namespace godwit::state
