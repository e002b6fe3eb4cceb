#include "engine/state/description_common.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit::state {
namespace {

constexpr const char* kForeignOwner = "its signals go to another process or to a process group";
constexpr const char* kForeignRemedy = "let the process itself be the owner (F_SETOWN), or set none";

/// An owner can be set on anything, yet acts only with O_ASYNC, or on a socket (SIGURG).
bool may_have_owner(const OpenFile& file) {
  if ((file.flags & O_PATH) != 0) return false;
  return (file.flags & O_ASYNC) != 0 || S_ISSOCK(file.status.st_mode);
}

Result<std::optional<wire::AsyncOwner>> read_owner(const tracee::Process& process, const OpenFile& file) {
  if (!may_have_owner(file)) return std::optional<wire::AsyncOwner>();
  const Fd copy = TRY(process.pidfd().get_fd(file.number()));
  f_owner_ex owner{};
  if (::fcntl(copy.get(), F_GETOWN_EX, &owner) != 0) return fail_errno("fcntl(F_GETOWN_EX)", file.subject());
  if (owner.pid == 0) return std::optional<wire::AsyncOwner>();
  if (owner.type == F_OWNER_PGRP || owner.pid != process.pid())
    return fail(ErrorKind::kUnsupported, "read the signal owner of a descriptor", file.subject(),
                std::string(kForeignOwner) + ": " + kForeignRemedy);
  wire::AsyncOwner out;
  out.set_owner_type(owner.type);
  out.set_signal(::fcntl(copy.get(), F_GETSIG));
  return std::optional(out);
}

Status apply_owner(BuildContext& ctx, int fd, const wire::Description& description) {
  const auto& owner = description.async_owner();
  tracee::Batch batch;
  const f_owner_ex value{static_cast<__pid_type>(owner.owner_type()), ctx.pid};
  batch.call(SYS_fcntl, {fd, F_SETOWN_EX, batch.put_value(value)}, "fcntl(F_SETOWN_EX)");
  if (owner.signal() != 0) batch.call(SYS_fcntl, {fd, F_SETSIG, owner.signal()}, "fcntl(F_SETSIG)");
  return ctx.run(batch);
}

}  // namespace

int changeable_flags(int flags) {
  return flags & (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME);
}

Status check_async_owner(const CheckContext& ctx, const OpenFile& file, Findings& findings) {
  const auto owner = read_owner(ctx.process, file);
  if (!owner.ok() && owner.error().kind == ErrorKind::kUnsupported)
    findings.push_back(
        {"descriptors", file.subject(), "a descriptor with O_ASYNC", kForeignOwner, kForeignRemedy, true});
  return {};
}

Status capture_common(const CaptureContext& ctx, const OpenFile& file, wire::Description& out) {
  out.set_flags(static_cast<uint32_t>(file.flags));
  if (auto owner = TRY(read_owner(ctx.process, file))) *out.mutable_async_owner() = *owner;
  const bool nameless = file.link.starts_with("pipe:[") || file.link.starts_with("socket:[");
  if (nameless) {
    out.mutable_inode_owner()->set_uid(file.status.st_uid);
    out.mutable_inode_owner()->set_gid(file.status.st_gid);
  }
  return {};
}

Status apply_common(BuildContext& ctx, int fd, const wire::Description& description) {
  const auto flags = static_cast<int>(description.flags());
  if ((flags & O_PATH) != 0) return {};
  if (description.has_inode_owner()) {
    struct stat status {};
    const auto& owner = description.inode_owner();
    if (::fstat(fd, &status) != 0) return fail_errno("fstat", description.subject());
    const bool same = status.st_uid == owner.uid() && status.st_gid == owner.gid();
    if (!same && ::fchown(fd, owner.uid(), owner.gid()) != 0)
      return fail_errno("fchown", description.subject());
  }
  if (description.has_async_owner()) TRY(apply_owner(ctx, fd, description));
  const int now = ::fcntl(fd, F_GETFL);
  if (now < 0) return fail_errno("fcntl(F_GETFL)", description.subject());
  const int wanted = changeable_flags(flags) | (flags & O_ASYNC);
  if ((changeable_flags(now) | (now & O_ASYNC)) == wanted) return {};
  if (::fcntl(fd, F_SETFL, wanted) != 0) return fail_errno("fcntl(F_SETFL)", description.subject());
  return {};
}

}  // namespace godwit::state
