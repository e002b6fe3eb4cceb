// File descriptors of every kind that moves: what they are, where they stand, what waits in them, who shares
// them.
#include "program.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static const char* fd_is(int fd, int status_flags, int fd_flags) {
  int have = fcntl(fd, F_GETFL), cloexec = fcntl(fd, F_GETFD);
  EXPECT(have == status_flags && cloexec == fd_flags, "fd %d: flags %o and %d, want %o and %d", fd, have,
         cloexec, status_flags, fd_flags);
  return NULL;
}
#define TRY_CHECK(what)           \
  do {                            \
    const char* reason_ = (what); \
    if (reason_) return reason_;  \
  } while (0)

static int flags_of(int fd) {
  return fcntl(fd, F_GETFL);
}

// ---- regular files: offset, append, sharing one description by dup, not sharing by a second open, high
// numbers
static int plain, shared, alone, appending, high, files_flags[5];
static void files_prepare(void) {
  plain = open(program_path("plain"), O_RDWR | O_CREAT | O_TRUNC, 0640);
  char text[1000];
  fill(text, sizeof text, 41);
  MUST(plain >= 0 && write(plain, text, sizeof text) == sizeof text && lseek(plain, 400, SEEK_SET) == 400);
  shared = fcntl(plain, F_DUPFD_CLOEXEC, 200);
  alone = open(program_path("plain"), O_RDONLY | O_NOATIME);
  MUST(shared >= 200 && alone >= 0 && lseek(alone, 800, SEEK_SET) == 800);
  appending =
      open(program_path("appended"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  MUST(appending >= 0 && write(appending, "start.", 6) == 6);
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  MUST(!setrlimit(RLIMIT_NOFILE, &limit));
  high = dup2(alone, 1000);
  MUST(high == 1000);
  const int all[] = {plain, shared, alone, appending, high};
  for (int i = 0; i < 5; i++) files_flags[i] = flags_of(all[i]);
}
static const char* files_check(int round) {
  const int all[] = {plain, shared, alone, appending, high};
  const int cloexec[] = {0, FD_CLOEXEC, 0, FD_CLOEXEC, 0};
  for (int i = 0; i < 5; i++) TRY_CHECK(fd_is(all[i], files_flags[i], cloexec[i]));
  EXPECT(lseek(plain, 0, SEEK_CUR) == 400, "offset %ld", (long)lseek(plain, 0, SEEK_CUR));
  lseek(plain, 404, SEEK_SET);
  EXPECT(lseek(shared, 0, SEEK_CUR) == 404, "the duplicate is no longer the same file description");
  EXPECT(lseek(alone, 0, SEEK_CUR) == 800 && lseek(high, 0, SEEK_CUR) == 800, "offset %ld",
         (long)lseek(alone, 0, SEEK_CUR));
  lseek(high, 808, SEEK_SET);
  EXPECT(lseek(alone, 0, SEEK_CUR) == 808, "1000 and its origin are no longer one");
  lseek(plain, 400, SEEK_SET);
  lseek(alone, 800, SEEK_SET);
  char text[1000];
  EXPECT(pread(plain, text, sizeof text, 0) == sizeof text && differs(text, sizeof text, 41) < 0, "content");
  EXPECT(write(appending, "x", 1) == 1, "append: %s", strerror(errno));
  struct stat found;
  fstat(appending, &found);
  EXPECT(found.st_size == 6 + round, "appended file has %ld bytes", (long)found.st_size);
  struct stat by_name, by_fd;
  EXPECT(!stat(program_path("plain"), &by_name) && !fstat(plain, &by_fd) && by_name.st_ino == by_fd.st_ino,
         "another file");
  return NULL;
}

// ---- a directory read half way
static int directory;
static char names_rest[64][64];
static int names_count;
static int read_names(int fd, char names[][64], int most) {
  char buffer[160];  // a few names a call
  int count = 0;
  for (long got; count < most && (got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;)
    for (char* at = buffer; at < buffer + got && count < most; at += *(unsigned short*)(at + 16))
      snprintf(names[count++], 64, "%s", at + 19);
  return count;
}
static long directory_at;
static void directory_prepare(void) {
  char path[64];
  MUST(!mkdir(program_path("names"), 0755));
  for (int i = 0; i < 40; i++) {
    snprintf(path, sizeof path, "names/number-%d", i);
    close(open(program_path(path), O_WRONLY | O_CREAT, 0644));
  }
  directory = open(program_path("names"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  char buffer[200];
  MUST(directory >= 0 && syscall(SYS_getdents64, directory, buffer, sizeof buffer) > 0);
  directory_at = lseek(directory, 0, SEEK_CUR);
  names_count = read_names(directory, names_rest, 64);
  MUST(names_count > 10 && lseek(directory, directory_at, SEEK_SET) == directory_at);
}
static const char* directory_check(int round) {
  (void)round;
  static char names[64][64];
  int count = read_names(directory, names, 64);
  EXPECT(count == names_count, "%d names left, were %d", count, names_count);
  EXPECT(!memcmp(names, names_rest, sizeof names[0] * (size_t)count), "other names");
  lseek(directory, directory_at, SEEK_SET);
  return NULL;
}

// ---- devices
static int devices[4];
static void devices_prepare(void) {
  static const char* const names[] = {"/dev/null", "/dev/zero", "/dev/urandom", "/dev/full"};
  for (int i = 0; i < 4; i++) MUST((devices[i] = open(names[i], O_RDWR | (i == 2 ? O_CLOEXEC : 0))) >= 0);
}
static const char* devices_check(int round) {
  (void)round;
  char bytes[32];
  memset(bytes, 1, sizeof bytes);
  EXPECT(read(devices[0], bytes, 32) == 0 && write(devices[0], bytes, 32) == 32, "null");
  EXPECT(read(devices[1], bytes, 32) == 32 && all_zero(bytes, 32) < 0, "zero");
  EXPECT(read(devices[2], bytes, 32) == 32 && all_zero(bytes, 32) >= 0, "urandom");
  EXPECT(write(devices[3], bytes, 1) == -1 && errno == ENOSPC, "full");
  return NULL;
}

// ---- pipes: bytes in them, O_NONBLOCK on one end, packets, size, both ends and only one
static int pipe_fds[2], packet_fds[2], full_fds[2], widow;
static int pipe_size;
static const size_t kFull = 65536;
static void pipes_fill(void) {
  char text[5000];
  fill(text, sizeof text, 43);
  MUST(write(pipe_fds[1], text, sizeof text) == sizeof text);
  MUST(write(packet_fds[1], text, 100) == 100 && write(packet_fds[1], text, 7) == 7 &&
       write(packet_fds[1], text, 200) == 200);
}
static void pipes_prepare(void) {
  MUST(!pipe2(pipe_fds, O_NONBLOCK) && !pipe2(packet_fds, O_DIRECT | O_CLOEXEC) &&
       !pipe2(full_fds, O_NONBLOCK));
  MUST(!fcntl(pipe_fds[1], F_SETFL, O_WRONLY));  // only the reader does not block
  pipe_size = fcntl(pipe_fds[0], F_SETPIPE_SZ, 32768);
  MUST(pipe_size == 32768);
  pipes_fill();
  char* text = malloc(kFull);
  fill(text, kFull, 44);
  MUST(write(full_fds[1], text, kFull) == (ssize_t)kFull);
  free(text);
  int pair[2];
  MUST(!pipe(pair) && write(pair[1], "last words", 10) == 10 && !close(pair[1]));
  widow = pair[0];
}
static const char* pipes_check(int round) {
  char text[5000];
  EXPECT((flags_of(pipe_fds[0]) & O_NONBLOCK) && !(flags_of(pipe_fds[1]) & O_NONBLOCK), "O_NONBLOCK: %o %o",
         flags_of(pipe_fds[0]), flags_of(pipe_fds[1]));
  EXPECT(fcntl(pipe_fds[1], F_GETPIPE_SZ) == pipe_size, "size %d", fcntl(pipe_fds[1], F_GETPIPE_SZ));
  ssize_t got = read(pipe_fds[0], text, sizeof text);
  EXPECT(got == sizeof text && differs(text, sizeof text, 43) < 0, "%zd bytes", got);
  EXPECT(read(pipe_fds[0], text, 1) == -1 && errno == EAGAIN, "bytes too many");
  static const ssize_t packets[] = {100, 7, 200};
  EXPECT(flags_of(packet_fds[1]) & O_DIRECT, "no longer a packet pipe");
  for (int i = 0; i < 3; i++) {
    got = read(packet_fds[0], text, sizeof text);
    EXPECT(got == packets[i], "packet %d has %zd bytes", i, got);
  }
  EXPECT(write(full_fds[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe has room");
  char* whole = malloc(kFull);
  got = read(full_fds[0], whole, kFull);
  bool same = got == (ssize_t)kFull && differs(whole, kFull, 44) < 0;
  ssize_t again = write(full_fds[1], whole, kFull);
  free(whole);
  EXPECT(same && again == (ssize_t)kFull, "the full pipe: %zd bytes, %zd fit again", got, again);
  if (round == 1) {
    got = read(widow, text, sizeof text);
    EXPECT(got == 10 && !memcmp(text, "last words", 10), "the pipe without a writer: %zd", got);
  }
  EXPECT(read(widow, text, 1) == 0, "no end of file on the pipe without a writer");
  pipes_fill();
  return NULL;
}

// ---- eventfds
static int counter, semaphore;
static void eventfds_prepare(void) {
  counter = eventfd(7, EFD_NONBLOCK);
  semaphore = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK);
  MUST(counter >= 0 && semaphore >= 0);
}
static const char* eventfds_check(int round) {
  (void)round;
  uint64_t value = 0;
  EXPECT(read(counter, &value, 8) == 8 && value == 7, "counter %lu", value);
  EXPECT(read(counter, &value, 8) == -1 && errno == EAGAIN, "counter twice");
  for (int i = 0; i < 3; i++) EXPECT(read(semaphore, &value, 8) == 8 && value == 1, "semaphore %lu", value);
  EXPECT(read(semaphore, &value, 8) == -1 && errno == EAGAIN, "semaphore a fourth time");
  value = 7;
  MUST(write(counter, &value, 8) == 8);
  value = 3;
  MUST(write(semaphore, &value, 8) == 8);
  return NULL;
}

// ---- timerfds: unread expirations, far ones, absolute ones, intervals
static int ticking, far, absolute, idle_timer;
static int64_t far_end;
static void timerfd_arm(int fd, int flags, int64_t first_ns, int64_t interval_ns) {
  struct itimerspec spec = {{interval_ns / 1000000000, interval_ns % 1000000000},
                            {first_ns / 1000000000, first_ns % 1000000000}};
  MUST(!timerfd_settime(fd, flags, &spec, NULL));
}
static void timerfds_prepare(void) {
  ticking = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  far = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
  absolute = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
  idle_timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  MUST(ticking >= 0 && far >= 0 && absolute >= 0 && idle_timer >= 0);
  timerfd_arm(ticking, 0, 1000000, 1000000);
  timerfd_arm(far, 0, 1000000000000, 5000000000);
  far_end = now_ns(CLOCK_BOOTTIME) + 1000000000000;
  timerfd_arm(absolute, TFD_TIMER_ABSTIME, now_ns(CLOCK_REALTIME) + 1000000, 0);
  pause_ms(20);
}
static const char* timerfds_check(int round) {
  uint64_t ticks = 0;
  struct itimerspec spec;
  EXPECT(read(ticking, &ticks, 8) == 8 && ticks >= 15, "%lu ticks of 1 ms in more than 20 ms", ticks);
  timerfd_gettime(ticking, &spec);
  EXPECT(spec.it_interval.tv_nsec == 1000000, "interval %ld", spec.it_interval.tv_nsec);
  struct pollfd ready = {ticking, POLLIN, 0};
  EXPECT(poll(&ready, 1, 10000) == 1, "it no longer ticks");
  timerfd_gettime(far, &spec);
  int64_t left = (int64_t)spec.it_value.tv_sec * 1000000000 + spec.it_value.tv_nsec,
          wanted = far_end - now_ns(CLOCK_BOOTTIME);
  EXPECT(left - wanted < 20000000000 && wanted - left < 20000000000, "%ld ns left, want %ld", (long)left,
         (long)wanted);
  EXPECT(spec.it_interval.tv_sec == 5, "interval %ld", spec.it_interval.tv_sec);
  if (round == 1) EXPECT(read(absolute, &ticks, 8) == 8 && ticks == 1, "the absolute one: %lu", ticks);
  EXPECT(read(absolute, &ticks, 8) == -1 && errno == EAGAIN, "the absolute one fires again");
  EXPECT(read(idle_timer, &ticks, 8) == -1 && errno == EAGAIN, "the one never armed fires");
  pause_ms(20);
  return NULL;
}

// ---- signalfd
static int signals;
static void signalfd_prepare(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGRTMIN + 3);
  sigprocmask(SIG_BLOCK, &set, NULL);
  signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  union sigval value = {.sival_int = 99};
  MUST(signals >= 0 && !sigqueue(getpid(), SIGRTMIN + 3, value));
}
static const char* signalfd_check(int round) {
  (void)round;
  struct signalfd_siginfo info;
  EXPECT(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == (uint32_t)SIGRTMIN + 3 &&
             info.ssi_int == 99,
         "signal %u value %d", info.ssi_signo, info.ssi_int);
  kill(getpid(), SIGUSR1);
  EXPECT(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1, "signal %u",
         info.ssi_signo);
  EXPECT(read(signals, &info, sizeof info) == -1 && errno == EAGAIN, "a signal too many");
  union sigval value = {.sival_int = 99};
  MUST(!sigqueue(getpid(), SIGRTMIN + 3, value));
  return NULL;
}

// ---- epoll: data words, level, edge, one shot, one inside another, a registered fd whose number is closed
// elsewhere
static int poll_set, outer_set, level_fd, edge_fd, once_fd;
static void epoll_add(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  MUST(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}
static void epolls_prepare(void) {
  poll_set = epoll_create1(EPOLL_CLOEXEC);
  outer_set = epoll_create1(0);
  level_fd = eventfd(1, EFD_NONBLOCK);
  edge_fd = eventfd(0, EFD_NONBLOCK);
  once_fd = eventfd(1, EFD_NONBLOCK);
  MUST(poll_set >= 0 && outer_set >= 0 && level_fd >= 0 && edge_fd >= 0 && once_fd >= 0);
  epoll_add(poll_set, level_fd, EPOLLIN, 0x1111222233334444);
  epoll_add(poll_set, edge_fd, EPOLLIN | EPOLLET, 0xaaaabbbbccccdddd);
  epoll_add(poll_set, once_fd, EPOLLIN | EPOLLONESHOT, 0x5555666677778888);
  epoll_add(outer_set, poll_set, EPOLLIN, 42);
  struct epoll_event events[8];
  MUST(epoll_wait(poll_set, events, 8, 0) == 2);  // level, and once, which now sleeps
}
static uint64_t epolls_seen(int set, int* count) {
  struct epoll_event events[8];
  uint64_t seen = 0;
  *count = epoll_wait(set, events, 8, 0);
  for (int i = 0; i < *count; i++) seen ^= events[i].data.u64;
  return seen;
}
static const char* epolls_check(int round) {
  (void)round;
  int count;
  uint64_t seen = epolls_seen(outer_set, &count);
  EXPECT(count == 1 && seen == 42, "the outer set: %d events, %lx", count, seen);
  seen = epolls_seen(poll_set, &count);
  EXPECT(count == 1 && seen == 0x1111222233334444, "%d events, %lx", count, seen);
  uint64_t one = 1;
  MUST(write(edge_fd, &one, 8) == 8);
  seen = epolls_seen(poll_set, &count);
  EXPECT(count == 2 && seen == (0x1111222233334444 ^ 0xaaaabbbbccccdddd), "after an edge: %d events, %lx",
         count, seen);
  seen = epolls_seen(poll_set, &count);
  EXPECT(count == 1, "the edge shows twice");
  struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 0x5555666677778888};
  EXPECT(!epoll_ctl(poll_set, EPOLL_CTL_MOD, once_fd, &event), "rearming: %s", strerror(errno));
  seen = epolls_seen(poll_set, &count);
  EXPECT(count == 2 && seen == (0x1111222233334444 ^ 0x5555666677778888), "one shot again: %d events, %lx",
         count, seen);
  MUST(read(edge_fd, &one, 8) == 8);
  return NULL;
}

// ---- memfds with seals, and their offsets; and one that ends within a page
static int sealed, odd;
static void memfds_prepare(void) {
  sealed = memfd_create("sealed one", MFD_ALLOW_SEALING);
  char text[4096];
  fill(text, sizeof text, 47);
  MUST(sealed >= 0 && write(sealed, text, sizeof text) == sizeof text && lseek(sealed, 123, SEEK_SET) == 123);
  MUST(!fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
  odd = memfd_create("odd", MFD_CLOEXEC);
  MUST(odd >= 0 && write(odd, text, 1000) == 1000);
}
static const char* memfds_check(int round) {
  (void)round;
  char text[4096];
  EXPECT(fcntl(sealed, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW), "seals %x", fcntl(sealed, F_GET_SEALS));
  EXPECT(ftruncate(sealed, 0) == -1 && errno == EPERM, "the seal does not hold");
  EXPECT(lseek(sealed, 0, SEEK_CUR) == 123, "offset %ld", (long)lseek(sealed, 0, SEEK_CUR));
  EXPECT(pread(sealed, text, sizeof text, 0) == sizeof text && differs(text, sizeof text, 47) < 0, "content");
  struct stat status;
  EXPECT(!fstat(odd, &status) && status.st_size == 1000, "size %ld", (long)status.st_size);
  ssize_t length = readlink(fail("/proc/self/fd/%d", sealed), text, sizeof text - 1);
  text[length > 0 ? length : 0] = 0;
  EXPECT(!strcmp(text, "/memfd:sealed one (deleted)"), "name %s", text);
  return NULL;
}

// ---- locks: taken before, held after; another opener cannot have them
static int lock_fd, flock_fd;
static void locks_prepare(void) {
  lock_fd = open(program_path("locked"), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  flock_fd = open(program_path("flocked"), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};
  MUST(lock_fd >= 0 && flock_fd >= 0 && !fcntl(lock_fd, F_SETLK, &lock) && !flock(flock_fd, LOCK_EX));
}
static const char* locks_check(int round) {
  (void)round;
  int other = open(program_path("flocked"), O_RDWR | O_CLOEXEC);
  int taken = flock(other, LOCK_EX | LOCK_NB);
  close(other);
  EXPECT(taken == -1, "the flock is gone");
  const char* locks = slurp("/proc/locks");
  struct stat found;
  fstat(lock_fd, &found);
  char wanted[64];
  snprintf(wanted, sizeof wanted, ":%lu 10 29", (unsigned long)found.st_ino);
  EXPECT(strstr(locks, wanted), "no lock %s in /proc/locks", wanted);
  return NULL;
}

// ---- the set of numbers as a whole, in a check of its own so that nothing else is open
static char numbers_want[1024];
static void numbers(char* out, size_t size) {
  DIR* list = opendir("/proc/self/fd");
  size_t used = 0;
  out[0] = 0;
  for (struct dirent* one; (one = readdir(list));) {
    char link[256] = "";
    if (one->d_name[0] == '.' || atoi(one->d_name) == dirfd(list)) continue;
    if (readlink(fail("/proc/self/fd/%s", one->d_name), link, sizeof link - 1) < 0) link[0] = '?';
    char* inode = strchr(link, ':');
    if (link[0] != '/' && inode && inode[1] == '[') inode[1] = 0;  // pipe:[123]: the number may change
    used += (size_t)snprintf(out + used, size - used, "%s=%s ", one->d_name, link);
    if (used >= size - 300) break;
  }
  closedir(list);
}
static void numbers_prepare(void) {
  numbers(numbers_want, sizeof numbers_want);
}
static const char* numbers_check(int round) {
  (void)round;
  char have[1024];
  numbers(have, sizeof have);
  EXPECT(!strcmp(have, numbers_want), "%.180s, was %.180s", have, numbers_want);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"files", files_prepare, files_check, false},
                               {"directory", directory_prepare, directory_check, false},
                               {"devices", devices_prepare, devices_check, false},
                               {"pipes", pipes_prepare, pipes_check, false},
                               {"eventfds", eventfds_prepare, eventfds_check, false},
                               {"timerfds", timerfds_prepare, timerfds_check, false},
                               {"signalfd", signalfd_prepare, signalfd_check, false},
                               {"epolls", epolls_prepare, epolls_check, false},
                               {"memfds", memfds_prepare, memfds_check, false},
                               {"locks", locks_prepare, locks_check, true},
                               {"numbers", numbers_prepare, numbers_check, false},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
