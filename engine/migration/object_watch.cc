#include "engine/migration/object_watch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <tuple>

namespace godwit::migration {
namespace {

std::string subject(int fd) {
  return fmt::format("descriptor {} of this engine", fd);
}

/// Of other file systems it is not known that each write shows in the time.
bool is_tmpfs(int fd) {
  struct statfs filesystem {};
  return ::fstatfs(fd, &filesystem) == 0 && filesystem.f_type == TMPFS_MAGIC;
}

Status look_at_times(int fd, ObjectLook& look) {
  // ORDER: the clock first. A write by descriptor stamps the object with this clock, or a finer one, before
  // it touches a page: if the stamp of now is older than the clock, the next one is another.
  timespec clock{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &clock);
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_CTIME | STATX_SIZE | STATX_BLOCKS, &status) != 0)
    return fail_errno("statx a shared memory object", subject(fd));
  look.changed_s = status.stx_ctime.tv_sec;
  look.changed_ns = status.stx_ctime.tv_nsec;
  look.size = status.stx_size;
  look.blocks = status.stx_blocks;
  look.settled = std::tuple(look.changed_s, int64_t{look.changed_ns}) <
                     std::tuple(int64_t{clock.tv_sec}, int64_t{clock.tv_nsec}) &&
                 is_tmpfs(fd);
  // KERNEL: a write holds the inode's lock from before its stamp to its last byte, and so does a search for
  // data. Behind this, no write is under way that had its stamp already when we looked.
  (void)::lseek(fd, 0, SEEK_DATA);
  return {};
}

}  // namespace

std::string_view why_changed(const ObjectLook& before, const ObjectLook& now) {
  const auto stamp = [](const ObjectLook& look) {
    return std::tuple(look.changed_s, look.changed_ns, look.size, look.blocks);
  };
  if (before.mapped || now.mapped) return "somebody maps it for writing";
  if (before.mappings_made != now.mappings_made) return "somebody mapped it since";
  if (stamp(before) != stamp(now)) return "it was written by a call";
  if (!before.settled) return "it was written shortly before, or is not on tmpfs";
  return {};
}

Result<ObjectWatch> ObjectWatch::create() {
  auto files = TRY(ebpf::OpenFiles::create(::gettid()));
  return ObjectWatch(std::move(files), TRY(ebpf::SharedMappings::create()));
}

Status ObjectWatch::get_to_know(std::span<const int> fds) {
  if (std::all_of(fds.begin(), fds.end(), [&](int fd) { return inodes_.contains(fd); })) return {};
  const auto facts = TRY(files_.read());
  for (const int fd : fds) {
    const ebpf::OpenFileFacts* found = ebpf::find_facts(facts, fd);
    if (found == nullptr) return fail(ErrorKind::kBug, "watch a shared memory object", subject(fd));
    TRY(mappings_.watch(found->inode));
    inodes_[fd] = found->inode;
  }
  return {};
}

Result<std::vector<ObjectLook>> ObjectWatch::look(std::span<const int> fds) {
  TRY(get_to_know(fds));
  std::vector<ObjectLook> looks(fds.size());
  // ORDER: what was made, then what is there: a mapping that is made in between counts in the next look.
  const uint64_t untold = TRY(mappings_.count_untold());
  for (size_t i = 0; i < fds.size(); ++i)
    looks[i].mappings_made = untold + TRY(mappings_.count(inodes_.at(fds[i])));
  const auto facts = TRY(files_.read());
  for (size_t i = 0; i < fds.size(); ++i) {
    const ebpf::OpenFileFacts* found = ebpf::find_facts(facts, fds[i]);
    if (found == nullptr) return fail(ErrorKind::kBug, "look at a shared memory object", subject(fds[i]));
    looks[i].mapped = found->writable_mappings > 0;
    TRY(look_at_times(fds[i], looks[i]));
  }
  return looks;
}

}  // namespace godwit::migration
