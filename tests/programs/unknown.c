// Things that cannot move, one a case: `check` must name it, say what to do, and touch nothing.
#include "program.h"

#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pty.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

static int held;
static const char* alive(int round) {
  (void)round;
  EXPECT(held < 0 || fcntl(held, F_GETFD) >= 0, "fd %d is gone", held);
  return NULL;
}
static void inotify(void) {
  MUST((held = inotify_init1(0)) >= 0 && inotify_add_watch(held, program_dir, IN_CREATE) >= 0);
}
static void fanotify(void) {
  MUST((held = fanotify_init(FAN_CLASS_NOTIF, O_RDONLY)) >= 0);
}
static void io_uring(void) {
  struct io_uring_params params = {0};
  MUST((held = (int)syscall(SYS_io_uring_setup, 8, &params)) >= 0);
  MUST(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, held, IORING_OFF_SQ_RING) !=
       MAP_FAILED);
}
/// A ring with a registered buffer, of which neither a descriptor nor a mapping tells: it lives on in its
/// thread.
static void pinned(void) {
  struct io_uring_params params = {0};
  int ring = (int)syscall(SYS_io_uring_setup, 8, &params);
  MUST(ring >= 0);
  static char buffer[65536];
  struct iovec vector = {buffer, sizeof buffer};
  MUST(!syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &vector, 1));
  struct io_uring_rsrc_update slot = {.offset = -1U, .data = (uint64_t)ring};
  MUST(syscall(SYS_io_uring_register, ring, IORING_REGISTER_RING_FDS, &slot, 1) == 1);
  MUST(!close(ring));
  held = -1;
}
static void uffd(void) {
  MUST((held = (int)syscall(SYS_userfaultfd, O_CLOEXEC)) >= 0);
}
static void perf(void) {
  struct perf_event_attr attributes = {
      .type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_CPU_CLOCK};
  MUST((held = (int)syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0)) >= 0);
}
static void terminal(void) {
  int other;
  MUST(!openpty(&held, &other, NULL, NULL, NULL));
}
static void child(void) {
  held = -1;
  pid_t pid = fork();
  MUST(pid >= 0);
  if (!pid)
    for (;;) pause();
}
static void sysv(void) {
  held = -1;
  int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
  char* at = shmat(id, NULL, 0);
  MUST(id >= 0 && at != (void*)-1 && !shmctl(id, IPC_RMID, NULL));
  strcpy(at, "kept");
}
static void netlink(void) {
  MUST((held = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)) >= 0);
}
static void packet(void) {
  MUST((held = socket(AF_PACKET, SOCK_RAW, 0)) >= 0);
}
static void pidfd(void) {
  MUST((held = (int)syscall(SYS_pidfd_open, getpid(), 0)) >= 0);
}
// A unix socket whose other end is another process's.
static void foreign(void) {
  int pair[2];
  MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  pid_t pid = fork();
  MUST(pid >= 0);
  if (!pid) {
    setsid();
    if (fork()) _exit(0);  // the keeper belongs to the init of this host, not to us
    close(pair[0]);
    for (;;) pause();
  }
  MUST(waitpid(pid, NULL, 0) == pid);
  close(pair[1]);
  held = pair[0];
}
// An open file that has a name, but not the one under which it was opened.
static void renamed(void) {
  char other[4096];
  MUST((held = open(program_path("renamed"), O_RDWR | O_CREAT, 0600)) >= 0 && write(held, "kept", 4) == 4);
  snprintf(other, sizeof other, "%s", program_path("another name"));
  MUST(!link(program_path("renamed"), other) && !unlink(program_path("renamed")));
}
static void in_queue(void) {
  int pair[2];
  MUST(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  held = pair[0];
  char byte = 1, control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  *header =
      (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(header), &pair[1], sizeof(int));
  MUST(sendmsg(pair[0], &message, 0) == 1);
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"inotify", inotify, alive, true},   {"fanotify", fanotify, alive, true},
                               {"io_uring", io_uring, alive, true}, {"pinned", pinned, alive, true},
                               {"userfaultfd", uffd, alive, true},  {"perf", perf, alive, true},
                               {"terminal", terminal, alive, true}, {"child", child, alive, true},
                               {"sysv", sysv, alive, true},         {"netlink", netlink, alive, true},
                               {"packet", packet, alive, true},     {"pidfd", pidfd, alive, true},
                               {"foreign", foreign, alive, true},   {"renamed", renamed, alive, true},
                               {"in_queue", in_queue, alive, true}, {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
