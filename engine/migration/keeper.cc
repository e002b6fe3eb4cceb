#include "engine/migration/keeper.h"

#include <fmt/format.h>
#include <linux/close_range.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "engine/base/units.h"

namespace godwit::migration {
namespace {

constexpr char kKeep = 'k', kGuard = 'g', kQuit = 'q';

union Control {
  cmsghdr align;
  char bytes[CMSG_SPACE(sizeof(int))];
};

// ---- the keeper's side: a fork of a process with threads, so system calls only
// -------------------------------------------

struct Held {
  static constexpr int kMost = 1000;
  int uffds[kMost];
  int count = 0;
  int process = -1;
};

/// What was said, and the descriptor that came with it; 0 when the engine is gone.
char receive(int line, int& fd) {
  char what = 0;
  iovec part{&what, 1};
  Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  ssize_t got = 0;
  do {
    got = ::recvmsg(line, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got <= 0) return 0;
  fd = -1;
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS) std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return what;
}

/// As Uffd::check_alive.
bool is_alive(int uffd) {
  uffdio_writeprotect request{{kUserSpaceEnd - kPageSize, kPageSize}, 0};
  return ::ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0 || errno != ESRCH;
}

void forget_dead(Held& held) {
  int left = 0;
  for (int i = 0; i < held.count; ++i) {
    if (is_alive(held.uffds[i]))
      held.uffds[left++] = held.uffds[i];
    else
      ::close(held.uffds[i]);
  }
  held.count = left;
}

/// Its engine is gone. Nobody reads what the process does any more, so it stands still, until it ends or
/// somebody takes it over.
void stand_in(Held& held) {
  if (held.process >= 0) ::syscall(SYS_pidfd_send_signal, held.process, SIGSTOP, nullptr, 0);
  for (forget_dead(held); held.count > 0; forget_dead(held)) ::poll(nullptr, 0, 200);
}

[[noreturn]] void live(int line) {
  ::setsid();
  ::prctl(PR_SET_NAME, "godwit-keeper");
  // Nothing but the line: not even the descriptors of the terminal, which would keep a pipeline waiting.
  ::dup2(line, 3);
  ::syscall(SYS_close_range, 4U, ~0U, 0);
  for (int fd = 0; fd < 3; ++fd) ::close(fd);
  static Held held;
  for (;;) {
    int fd = -1;
    const char what = receive(3, fd);
    if (what == kKeep && held.count == Held::kMost) forget_dead(held);
    if (what == kKeep && held.count < Held::kMost)
      held.uffds[held.count++] = fd;
    else if (what == kGuard)
      held.process = fd;
    else if (what == kQuit)
      ::_exit(0);
    else if (what == 0)
      break;
  }
  stand_in(held);
  ::_exit(0);
}

}  // namespace

Result<Keeper> Keeper::start() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return fail_errno("socketpair", "the keeper of a process that lacks pages");
  Fd mine(ends[0]);
  const Fd its(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork", "the keeper of a process that lacks pages");
  if (pid == 0) live(its.get());
  return Keeper(std::move(mine), pid);
}

Status Keeper::send(char what, int fd) const {
  iovec part{&what, 1};
  Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  if (::sendmsg(line_.get(), &message, MSG_NOSIGNAL) == 1) return {};
  Error error = fail_errno("hand a descriptor to the keeper", fmt::format("pid {}", pid_));
  error.remedy = "it was killed; the process would lose its missing pages if this engine died, too";
  return error;
}

Status Keeper::keep(int uffd) const {
  return send(kKeep, uffd);
}

Status Keeper::guard(const PidFd& process) const {
  return send(kGuard, process.get());
}

void Keeper::dismiss() {
  if (!line_.valid()) return;
  (void)send(kQuit, -1);
  line_.reset();
  ::waitpid(pid_, nullptr, 0);
}

}  // namespace godwit::migration
