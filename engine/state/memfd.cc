// memfd: a description of an object of shared memory whose contents travel with the memory. The object is
// made before any descriptor; here it is opened again, and sealed at the resume.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/state/memory_objects.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "memfd";
constexpr std::string_view kPrefix = "/memfd:";
constexpr std::string_view kDeleted = " (deleted)";
constexpr int kOpenFlags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;

bool claims(const OpenFile& file) {
  return file.link.starts_with(kPrefix) && file.status.st_nlink == 0 && (file.flags & O_PATH) == 0;
}

Status check(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  struct statfs filesystem {};
  const std::string magic_link = ctx.process.path(fmt::format("fd/{}", file.number()));
  if (::statfs(magic_link.c_str(), &filesystem) == 0 && filesystem.f_type == HUGETLBFS_MAGIC &&
      static_cast<uint64_t>(filesystem.f_bsize) != kHugePageSize)
    findings.push_back({std::string(kRoom), file.subject(),
                        fmt::format("a memfd of huge pages of {} kB", filesystem.f_bsize >> 10),
                        "of hugetlbfs only those of 2048 kB are carried", "use MFD_HUGETLB | MFD_HUGE_2MB",
                        true});
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  const Fd copy = TRY(duplicate(ctx, file));
  wire::MemfdState state;
  std::string_view name = file.link;
  name.remove_prefix(kPrefix.size());
  if (name.ends_with(kDeleted)) name.remove_suffix(kDeleted.size());
  state.set_name(std::string(name));
  state.set_flags(static_cast<uint32_t>(file.flags));
  state.set_object(object_of(file.status));
  if (const int seals = ::fcntl(copy.get(), F_GET_SEALS); seals > 0)
    state.set_seals(static_cast<uint32_t>(seals));
  state.set_position(file.position);
  state.set_mode(file.status.st_mode & 07777);
  state.set_uid(file.status.st_uid);
  state.set_gid(file.status.st_gid);
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::MemfdState>(kRoom, message);
  return state.ok() ? fmt::format("{:x}", state.value().object()) : "damaged";
}

std::string subject(const wire::MemfdState& state) {
  return fmt::format("memfd {} (object {:#x})", state.name(), state.object());
}

Result<int> prepare(BuildContext& ctx, std::string_view message) {
  const auto state = TRY(parse_message<wire::MemfdState>(kRoom, message));
  const int object = TRY(descriptor_of(ctx, state.object(), subject(state)));
  return reopen(object, static_cast<int>(state.flags()) & kOpenFlags, subject(state));
}

/// Seals belong to the object: with several descriptions the first one sets them. They need a description
/// that may write, which a descriptor of the process need not be.
Status add_seals(int fd, const wire::MemfdState& state) {
  const int wanted = static_cast<int>(state.seals());
  const int now = ::fcntl(fd, F_GET_SEALS);
  if (now < 0) return fail_errno("fcntl(F_GET_SEALS)", subject(state));
  if ((wanted & ~now) == 0) return {};
  const int writable = TRY(reopen(fd, O_RDWR, subject(state)));
  const int done = ::fcntl(writable, F_ADD_SEALS, wanted & ~now);
  const int err = errno;
  ::close(writable);
  if (done != 0) return fail_errno("fcntl(F_ADD_SEALS)", subject(state), err);
  return {};
}

Status finish(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::MemfdState>(kRoom, message));
  const int object = TRY(descriptor_of(ctx, state.object(), subject(state)));
  struct stat status {};
  if (::fstat(object, &status) != 0) return fail_errno("fstat", subject(state));
  if ((status.st_uid != state.uid() || status.st_gid != state.gid()) &&
      ::fchown(object, state.uid(), state.gid()) != 0)
    return fail_errno("fchown", subject(state));
  if ((status.st_mode & 07777) != state.mode() && ::fchmod(object, state.mode()) != 0)
    return fail_errno("fchmod", subject(state));
  if (::lseek(fd, state.position(), SEEK_SET) != state.position()) return fail_errno("lseek", subject(state));
  // ORDER: contents and mappings may still be on their way; a sealed object takes neither.
  if (state.seals() != 0) ctx.at_resume.push_back([fd, state]() -> Status { return add_seals(fd, state); });
  return {};
}

}  // namespace

DescriptorRoom memfd_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

}  // namespace godwit::state
