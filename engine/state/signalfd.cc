// signalfd: a set of signals. The signals themselves wait with the threads.
#include <fcntl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/files.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "signalfd";
constexpr size_t kKernelMaskBytes = 8;

bool claims(const OpenFile& file) {
  return file.link == "anon_inode:[signalfd]";
}

Status check(const CheckContext&, const OpenFile&, Findings&) {
  return {};
}

Result<std::string> capture(CaptureContext&, const OpenFile& file) {
  const auto mask = parse_number(field(file.fdinfo, "sigmask:").value_or(""), 16);
  if (!mask)
    return fail(ErrorKind::kUnsupported, "read the mask of a signalfd", file.subject(),
                "its fdinfo does not tell it");
  wire::SignalFdState state;
  state.set_mask(*mask);
  return state.SerializeAsString();
}

Result<int> set_mask(int fd, std::string_view message, int flags) {
  const auto state = TRY(parse_message<wire::SignalFdState>(kRoom, message));
  const uint64_t mask = state.mask();
  const long made = ::syscall(SYS_signalfd4, fd, &mask, kKernelMaskBytes, flags);
  if (made < 0) return fail_errno("signalfd4", "a signalfd of the process");
  return static_cast<int>(made);
}

Result<int> prepare(BuildContext&, std::string_view message) {
  return set_mask(-1, message, SFD_CLOEXEC | SFD_NONBLOCK);
}

Status finish(BuildContext&, int fd, std::string_view message) {
  TRY(set_mask(fd, message, 0));
  return {};
}

}  // namespace

DescriptorRoom signalfd_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, nullptr};
}

}  // namespace godwit::state
