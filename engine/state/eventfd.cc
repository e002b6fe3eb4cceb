// eventfd: a counter, read from fdinfo, written back.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/base/files.h"
#include "engine/state/descriptor_room_list.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "eventfd";

bool claims(const OpenFile& file) {
  return file.link == "anon_inode:[eventfd]";
}

Status check(const CheckContext&, const OpenFile& file, Findings& findings) {
  // KERNEL: eventfd-semaphore is in fdinfo since 6.5; nothing else tells it.
  if (!field(file.fdinfo, "eventfd-semaphore:"))
    findings.push_back(
        {std::string(kRoom), file.subject(), "an eventfd of unknown mode",
         "this kernel does not tell whether it is a semaphore; it is taken for a plain counter",
         "nothing, unless the program uses EFD_SEMAPHORE", false});
  return {};
}

Result<std::string> capture(CaptureContext&, const OpenFile& file) {
  const auto count = parse_number(field(file.fdinfo, "eventfd-count:").value_or(""), 16);
  if (!count)
    return fail(ErrorKind::kUnsupported, "read the counter of an eventfd", file.subject(),
                "its fdinfo does not tell it");
  wire::EventFdState state;
  state.set_count(*count);
  state.set_semaphore(field(file.fdinfo, "eventfd-semaphore:").value_or("0") == "1");
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::EventFdState>(kRoom, message);
  return state.ok() && state.value().semaphore() ? "semaphore" : "counter";
}

Result<int> prepare(BuildContext&, std::string_view message) {
  const auto state = TRY(parse_message<wire::EventFdState>(kRoom, message));
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (state.semaphore() ? EFD_SEMAPHORE : 0));
  if (fd < 0) return fail_errno("eventfd", "an eventfd of the process");
  return fd;
}

Status finish(BuildContext&, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::EventFdState>(kRoom, message));
  const uint64_t count = state.count();
  if (count != 0 && ::write(fd, &count, sizeof count) != sizeof count)
    return fail_errno("write the counter of an eventfd", "an eventfd of the process");
  return {};
}

}  // namespace

DescriptorRoom eventfd_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

}  // namespace godwit::state
