// Pipes with both ends in the process, and what is in them. The source's pipe is read by tee(2) into a pipe
// of our own, which leaves it as it is. On the destination both ends are made once (anchors) and the
// descriptions taken from them.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "engine/state/descriptor_room_list.h"
#include "engine/state/descriptors.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "pipe";
constexpr int kLargeFile = 0100000;  // asm-generic/fcntl.h: O_LARGEFILE, which libc defines as 0 on x86-64
constexpr uint32_t kSanePipe = 1U << 30;  // no pipe is larger: the kernel counts pages in an int

bool claims(const OpenFile& file) {
  return S_ISFIFO(file.status.st_mode) && file.link.starts_with("pipe:[");
}

bool same_pipe(const OpenFile& a, const OpenFile& b) {
  return claims(a) && claims(b) && a.status.st_ino == b.status.st_ino;
}

bool reads(int flags) {
  return (flags & O_ACCMODE) != O_WRONLY;
}
bool writes(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY;
}

Status check(const CheckContext&, const OpenFile&, Findings&) {
  return {};  // an end in another process is found by the descriptors room, for all kinds at once
}

/// Contents travel with one description: the reading one with the lowest number.
bool carries_contents(const CaptureContext& ctx, const OpenFile& file) {
  const auto first = std::find_if(ctx.files.begin(), ctx.files.end(), [&](const OpenFile& other) {
    return same_pipe(other, file) && reads(other.flags);
  });
  return first != ctx.files.end() && first->number() == file.number();
}

struct Ends {
  Fd read, write;
};

Result<Ends> own_pipe(int capacity, const std::string& subject) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno("pipe2", "a copy of " + subject);
  Ends out{Fd(ends[0]), Fd(ends[1])};
  if (::fcntl(out.write.get(), F_SETPIPE_SZ, capacity) < 0)
    return fail_errno(fmt::format("fcntl(F_SETPIPE_SZ, {})", capacity), "a copy of " + subject);
  return out;
}

Status read_contents(const Fd& pipe, const OpenFile& file, wire::PipeState& state) {
  int waiting = 0;
  if (::ioctl(pipe.get(), FIONREAD, &waiting) != 0) return fail_errno("ioctl(FIONREAD)", file.subject());
  if (waiting <= 0) return {};
  const auto bytes = static_cast<size_t>(waiting);
  const Ends copy = TRY(own_pipe(static_cast<int>(state.capacity()), file.subject()));
  if (::tee(pipe.get(), copy.write.get(), bytes, SPLICE_F_NONBLOCK) != waiting)
    return fail_errno("tee the contents of a pipe", file.subject());
  // KERNEL: a read stops after one packet; a byte stream comes in one piece.
  std::string buffer(bytes, '\0');
  for (size_t left = bytes; left > 0;) {
    const ssize_t got = ::read(copy.read.get(), buffer.data(), left);
    if (got <= 0) return fail_errno("read the contents of a pipe", file.subject());
    state.add_chunks(buffer.data(), static_cast<size_t>(got));
    left -= static_cast<size_t>(got);
  }
  return {};
}

Result<std::string> capture(CaptureContext& ctx, const OpenFile& file) {
  const Fd pipe = TRY(duplicate(ctx, file));
  const int capacity = ::fcntl(pipe.get(), F_GETPIPE_SZ);
  if (capacity < 0) return fail_errno("fcntl(F_GETPIPE_SZ)", file.subject());
  wire::PipeState state;
  state.set_pipe(file.status.st_ino);
  state.set_flags(static_cast<uint32_t>(file.flags));
  state.set_capacity(static_cast<uint32_t>(capacity));
  // KERNEL: pipe(2) does not set O_LARGEFILE, open(2) does.
  state.set_primary((file.flags & kLargeFile) == 0);
  if (ctx.frozen != nullptr && carries_contents(ctx, file)) {
    TRY(read_contents(pipe, file, state));
    const bool packets = std::any_of(ctx.files.begin(), ctx.files.end(), [&](const OpenFile& other) {
      return same_pipe(other, file) && writes(other.flags) && (other.flags & O_DIRECT) != 0;
    });
    state.set_packets(packets || state.chunks_size() > 1);
  }
  return state.SerializeAsString();
}

std::string identity(std::string_view message) {
  const auto state = parse_message<wire::PipeState>(kRoom, message);
  return state.ok() ? fmt::format("{}", state.value().pipe()) : "damaged";
}

std::string anchor_name(const wire::PipeState& state, bool write_end) {
  return fmt::format("pipe {} {}", state.pipe(), write_end ? "write" : "read");
}

Status make_pipe(BuildContext& ctx, const wire::PipeState& state) {
  if (anchor(ctx, anchor_name(state, false))) return {};
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2", anchor_name(state, false));
  TRY(keep_anchor(ctx, anchor_name(state, false), ends[0]));
  return keep_anchor(ctx, anchor_name(state, true), ends[1]);
}

Result<int> prepare(BuildContext& ctx, std::string_view message) {
  const auto state = TRY(parse_message<wire::PipeState>(kRoom, message));
  TRY(make_pipe(ctx, state));
  const auto flags = static_cast<int>(state.flags());
  const std::string name = anchor_name(state, writes(flags));
  if (state.primary() && (flags & O_ACCMODE) != O_RDWR) return take_anchor(ctx, name, name);
  return reopen(*anchor(ctx, name), flags & (O_ACCMODE | O_NONBLOCK), name);
}

Status set_capacity(int fd, const wire::PipeState& state) {
  if (state.capacity() > kSanePipe)
    return fail(ErrorKind::kCorrupt, "restore the size of a pipe", anchor_name(state, false),
                "it makes no sense: the stream is damaged");
  const auto wanted = static_cast<int>(state.capacity());
  if (::fcntl(fd, F_GETPIPE_SZ) == wanted || ::fcntl(fd, F_SETPIPE_SZ, wanted) >= 0) return {};
  Error error = fail_errno(fmt::format("fcntl(F_SETPIPE_SZ, {})", wanted), anchor_name(state, false));
  error.remedy = "raise fs.pipe-max-size on this host";
  return error;
}

Status write_contents(int fd, const wire::PipeState& state) {
  const int flags = O_NONBLOCK | (state.packets() ? O_DIRECT : 0);
  if (::fcntl(fd, F_SETFL, flags) != 0) return fail_errno("fcntl(F_SETFL)", anchor_name(state, true));
  for (const std::string& chunk : state.chunks()) {
    const ssize_t put = ::write(fd, chunk.data(), chunk.size());
    if (put != static_cast<ssize_t>(chunk.size()))
      return fail_errno("write the contents of a pipe", anchor_name(state, true), put < 0 ? errno : ENOSPC);
  }
  return {};
}

Status finish(BuildContext& ctx, int fd, std::string_view message) {
  const auto state = TRY(parse_message<wire::PipeState>(kRoom, message));
  TRY(set_capacity(fd, state));
  if (state.chunks().empty()) return {};
  const auto write_end = anchor(ctx, anchor_name(state, true));
  if (!write_end)
    return fail(ErrorKind::kBug, "fill a pipe", anchor_name(state, true), "its end is not there");
  // ORDER: the anchor may share its description with a descriptor of the process; flags are set after all
  // finish().
  return write_contents(*write_end, state);
}

}  // namespace

DescriptorRoom pipe_room() {
  return {kRoom, claims, check, capture, prepare, finish, nullptr, identity};
}

}  // namespace godwit::state
