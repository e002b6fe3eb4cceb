#include "engine/base/pidfd.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace godwit {

Result<PidFd> PidFd::open(pid_t pid) {
  const long fd = ::syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0) return fail_errno("pidfd_open", fmt::format("pid {}", pid));
  PidFd made;
  made.pid_ = pid;
  made.fd_ = Fd(static_cast<int>(fd));
  return made;
}

Result<Fd> PidFd::get_fd(int fd) const {
  const long got = ::syscall(SYS_pidfd_getfd, fd_.get(), fd, 0);
  if (got < 0) return fail_errno("pidfd_getfd", fmt::format("fd {} of pid {}", fd, pid_));
  return Fd(static_cast<int>(got));
}

Status PidFd::send_signal(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) < 0)
    return fail_errno(fmt::format("pidfd_send_signal({})", signal), fmt::format("pid {}", pid_));
  return {};
}

bool PidFd::exited() const {
  pollfd p{fd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

}  // namespace godwit
