// Devices without memory: null, zero, full, random, urandom. Every other device is refused.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/foreign_path.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "device-file";
constexpr unsigned kMemMajor = 1;  // Documentation/admin-guide/devices.txt

struct Device {
  unsigned minor_number;
  const char* path;
};
constexpr std::array kDevices = {Device{3, "/dev/null"}, Device{5, "/dev/zero"}, Device{7, "/dev/full"},
                                 Device{8, "/dev/random"}, Device{9, "/dev/urandom"}};
constexpr int kOpenFlags = O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_LARGEFILE | O_NOFOLLOW;

const char* usual_path(unsigned major_number, unsigned minor_number) {
  for (const Device& device : kDevices)
    if (major_number == kMemMajor && device.minor_number == minor_number) return device.path;
  return nullptr;
}

bool claims(const OpenFile& file) {
  return S_ISCHR(file.status.st_mode) &&
         usual_path(major(file.status.st_rdev), minor(file.status.st_rdev)) != nullptr;
}

Status check(const CheckContext&, const OpenFile&, Findings&) {
  return {};
}

Result<std::string> capture(CaptureContext&, const OpenFile& file) {
  wire::DeviceFileState state;
  state.set_path(file.link);
  state.set_flags(static_cast<uint32_t>(file.flags & kOpenFlags));
  state.set_major(major(file.status.st_rdev));
  state.set_minor(minor(file.status.st_rdev));
  return state.SerializeAsString();
}

bool is_device(const std::string& path, dev_t device) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISCHR(status.st_mode) && status.st_rdev == device;
}

Result<int> prepare(BuildContext&, std::string_view message) {
  const auto state = TRY(parse_message<wire::DeviceFileState>(kRoom, message));
  const char* usual = usual_path(state.major(), state.minor());
  if (usual == nullptr)
    return fail(ErrorKind::kCorrupt, "open a device of the process",
                fmt::format("{} ({}:{})", state.path(), state.major(), state.minor()),
                "only devices without memory are carried over");
  const dev_t device = makedev(state.major(), state.minor());
  TRY(require_plain_path(state.path(), "open a device of the process"));
  const std::string path = is_device(state.path(), device) ? state.path() : usual;
  if (!is_device(path, device))
    return fail(ErrorKind::kUnsupported, "open a device of the process", path,
                "make the device node on this host");
  const int fd = ::open(path.c_str(), (static_cast<int>(state.flags()) & kOpenFlags) | O_CLOEXEC);
  if (fd < 0) return fail_errno("open a device of the process", path);
  return fd;
}

Status finish(BuildContext&, int, std::string_view) {
  return {};
}

}  // namespace

DescriptorRoom device_file_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, nullptr};
}

}  // namespace godwit::state
