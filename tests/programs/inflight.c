// Syscalls in flight: one thread asleep in each call that waits. After the move none may have seen EINTR,
// none may have woken early, and none may have slept its whole time anew. Says ready when half of the time is
// over.
#include "program.h"

#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>

#define kWait 6000000000  // ns
// A call begun anew would end half of kWait late; a slow machine gets less than that.
#define kLate 2500000000
// Calls whose timeout stands where only the program may write begin it anew (docs/process-support.md): with
// each move, which takes no longer than this.
#define kAnew (kWait + kLate)

typedef struct {
  const char* name;
  long (*call)(void);
  long wanted;  // what it returns; -1: fails with wanted_errno
  int wanted_errno;
  bool timed;       // ends by itself after kWait; else an event ends it
  clockid_t clock;  // by which; those of a process stand still while it is in an image, REALTIME does not
  pthread_t thread;
  volatile int64_t began, ended;
  volatile long result;
  volatile int error;
} Sleeper;

static int quiet_pipe[2], event_pipe[2], quiet_epoll, event_epoll, event_counter, event_listener,
    event_stream[2];
static struct sockaddr_un listener_at = {.sun_family = AF_UNIX};
static socklen_t listener_size;
static int futex_word, event_futex;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static struct timespec span(int64_t ns) {
  return (struct timespec){ns / 1000000000, ns % 1000000000};
}
static struct timespec end_on(clockid_t clock) {
  return span(now_ns(clock) + kWait);
}

static long in_nanosleep(void) {
  struct timespec t = span(kWait);
  return syscall(SYS_nanosleep, &t, NULL);
}
static long in_clock_relative(void) {
  struct timespec t = span(kWait);
  return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &t, NULL);
}
static long in_clock_absolute(void) {
  struct timespec t = end_on(CLOCK_MONOTONIC);
  return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}
static long in_clock_real(void) {
  struct timespec t = end_on(CLOCK_REALTIME);
  return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL);
}
static long in_futex(void) {
  struct timespec t = span(kWait);
  return syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
}
static long in_futex_bitset(void) {
  struct timespec t = end_on(CLOCK_MONOTONIC);
  return syscall(SYS_futex, &futex_word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, -1);
}
static long in_epoll(void) {
  struct epoll_event e;
  return epoll_wait(quiet_epoll, &e, 1, (int)(kWait / 1000000));
}
static long in_epoll_pwait(void) {
  struct epoll_event e;
  sigset_t m;
  sigfillset(&m);
  return epoll_pwait(quiet_epoll, &e, 1, (int)(kWait / 1000000), &m);
}
static long in_epoll_pwait2(void) {
  struct epoll_event e;
  struct timespec t = span(kWait);
  return syscall(SYS_epoll_pwait2, quiet_epoll, &e, 1, &t, NULL, 0);
}
static long in_poll(void) {
  struct pollfd p = {quiet_pipe[0], POLLIN, 0};
  return poll(&p, 1, (int)(kWait / 1000000));
}
static long in_ppoll(void) {
  struct pollfd p = {quiet_pipe[0], POLLIN, 0};
  struct timespec t = span(kWait);
  return ppoll(&p, 1, &t, NULL);
}
static long in_select(void) {
  fd_set s;
  FD_ZERO(&s);
  FD_SET(quiet_pipe[0], &s);
  struct timeval t = {kWait / 1000000000, 0};
  return select(quiet_pipe[0] + 1, &s, NULL, NULL, &t);
}
static long in_pselect(void) {
  fd_set s;
  FD_ZERO(&s);
  FD_SET(quiet_pipe[0], &s);
  struct timespec t = span(kWait);
  return pselect(quiet_pipe[0] + 1, &s, NULL, NULL, &t, NULL);
}
static long in_sigtimedwait(void) {
  sigset_t s;
  sigemptyset(&s);
  sigaddset(&s, SIGRTMIN + 28);
  struct timespec t = span(kWait);
  return sigtimedwait(&s, NULL, &t);
}
static long in_cond(void) {
  struct timespec t = end_on(CLOCK_REALTIME);
  pthread_mutex_lock(&mutex);
  int error = pthread_cond_timedwait(&cond, &mutex, &t);
  pthread_mutex_unlock(&mutex);
  return error;
}
static long in_receive(void) {
  char byte;
  return recv(event_stream[1], &byte, 1, 0);  // with SO_RCVTIMEO
}
static long in_read(void) {
  char bytes[8];
  return read(event_pipe[0], bytes, 8);
}
static long in_read_eventfd(void) {
  uint64_t value;
  return read(event_counter, &value, 8);
}
static long in_accept(void) {
  int fd = accept(event_listener, NULL, NULL);
  return fd >= 0 ? close(fd) : -1;
}
static long in_epoll_forever(void) {
  struct epoll_event e;
  return epoll_wait(event_epoll, &e, 1, -1);
}
static long in_sigwaitinfo(void) {
  sigset_t s;
  sigemptyset(&s);
  sigaddset(&s, SIGRTMIN + 29);
  return sigwaitinfo(&s, NULL);
}
static long in_futex_forever(void) {
  return syscall(SYS_futex, &event_futex, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}
static long in_sigsuspend_handler_runs;
static void on_wake(int number) {
  in_sigsuspend_handler_runs = number;
}
static long in_sigsuspend(void) {
  sigset_t s;
  sigfillset(&s);
  sigdelset(&s, SIGRTMIN + 27);
  return sigsuspend(&s);
}

static Sleeper sleepers[] = {
    {"nanosleep", in_nanosleep, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"clock_nanosleep BOOTTIME", in_clock_relative, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"clock_nanosleep MONOTONIC absolute", in_clock_absolute, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"clock_nanosleep REALTIME absolute", in_clock_real, 0, 0, true, CLOCK_REALTIME, 0, 0, 0, 0, 0},
    {"futex", in_futex, -1, ETIMEDOUT, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"futex absolute", in_futex_bitset, -1, ETIMEDOUT, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"epoll_wait", in_epoll, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"epoll_pwait", in_epoll_pwait, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"epoll_pwait2", in_epoll_pwait2, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"poll", in_poll, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"ppoll", in_ppoll, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"select", in_select, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"pselect", in_pselect, 0, 0, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"sigtimedwait", in_sigtimedwait, -1, EAGAIN, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"pthread_cond_timedwait", in_cond, ETIMEDOUT, 0, true, CLOCK_REALTIME, 0, 0, 0, 0, 0},
    {"recv with SO_RCVTIMEO", in_receive, -1, EAGAIN, true, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"read of a pipe", in_read, 5, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"read of an eventfd", in_read_eventfd, 8, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"accept", in_accept, 0, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"epoll_wait for ever", in_epoll_forever, 1, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"sigwaitinfo", in_sigwaitinfo, 0, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"futex for ever", in_futex_forever, 0, 0, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
    {"sigsuspend", in_sigsuspend, -1, EINTR, false, CLOCK_MONOTONIC, 0, 0, 0, 0, 0},
};
enum { kSleepers = sizeof sleepers / sizeof *sleepers };

static void* sleeper_main(void* argument) {
  Sleeper* me = argument;
  me->began = now_ns(me->clock);
  errno = 0;
  me->result = me->call();
  me->error = errno;
  me->ended = now_ns(me->clock);
  return NULL;
}

static void open_all(void) {
  MUST(!pipe(quiet_pipe) && !pipe(event_pipe) && !socketpair(AF_UNIX, SOCK_STREAM, 0, event_stream));
  struct timeval limit = {kWait / 1000000000, 0};
  MUST(!setsockopt(event_stream[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
  quiet_epoll = epoll_create1(0);
  event_epoll = epoll_create1(0);
  event_counter = eventfd(0, 0);
  struct epoll_event event = {.events = EPOLLIN};
  MUST(!epoll_ctl(quiet_epoll, EPOLL_CTL_ADD, quiet_pipe[0], &event));
  int length =
      snprintf(listener_at.sun_path + 1, sizeof listener_at.sun_path - 1, "godwit-inflight-%d", getpid());
  listener_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
  event_listener = socket(AF_UNIX, SOCK_STREAM, 0);
  MUST(!bind(event_listener, (struct sockaddr*)&listener_at, listener_size) && !listen(event_listener, 1));
}

static int epoll_trigger;
static void prepare(void) {
  open_all();
  epoll_trigger = eventfd(0, 0);
  struct epoll_event event = {.events = EPOLLIN};
  MUST(!epoll_ctl(event_epoll, EPOLL_CTL_ADD, epoll_trigger, &event));
  struct sigaction action = {.sa_handler = on_wake};
  MUST(!sigaction(SIGRTMIN + 27, &action, NULL));
  sigset_t blocked;
  sigemptyset(&blocked);
  for (int i = 27; i <= 29; i++) sigaddset(&blocked, SIGRTMIN + i);
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  for (int i = 0; i < kSleepers; i++)
    MUST(!pthread_create(&sleepers[i].thread, NULL, sleeper_main, &sleepers[i]));
}

static const char* trigger(void) {
  for (int i = 0; i < kSleepers; i++)
    EXPECT(sleepers[i].timed || !sleepers[i].ended, "%s ended before its event: %ld %s", sleepers[i].name,
           sleepers[i].result, strerror(sleepers[i].error));
  uint64_t one = 1;
  int client = socket(AF_UNIX, SOCK_STREAM, 0);
  bool sent = write(event_pipe[1], "event", 5) == 5 && write(event_counter, &one, 8) == 8 &&
              write(epoll_trigger, &one, 8) == 8 &&
              !connect(client, (struct sockaddr*)&listener_at, listener_size);
  EXPECT(sent, "%s", strerror(errno));
  event_futex = 1;
  syscall(SYS_futex, &event_futex, FUTEX_WAKE_PRIVATE, 100, NULL, NULL, 0);
  kill(getpid(), SIGRTMIN + 29);
  kill(getpid(), SIGRTMIN + 27);
  return NULL;
}

static const char* sleeper_check(Sleeper* one) {
  pthread_join(one->thread, NULL);
  const int64_t took = one->ended - one->began;
  long wanted = one->call == in_sigwaitinfo ? SIGRTMIN + 29 : one->wanted;
  EXPECT(one->result == wanted && (wanted != -1 || one->error == one->wanted_errno), "%s returned %ld, %s",
         one->name, one->result, strerror(one->error));
  // REALTIME may be stepped while it waits; a millisecond is for that. The others are exact.
  int64_t early = one->clock == CLOCK_REALTIME ? 1000000 : 0, late = kLate;
  // KERNEL: SO_RCVTIMEO counts ticks.
  if (one->call == in_receive) early = 10000000;
  if (one->call == in_receive || one->call == in_sigtimedwait || one->call == in_epoll_pwait2) late = kAnew;
  if (one->timed && (took < kWait - early || took > kWait + late))
    return fail("%s took %.6f s instead of %.1f", one->name, (double)took / 1e9, (double)kWait / 1e9);
  return NULL;
}

static const char* check(int round) {
  static __thread char all[4000];
  if (round > 1) return NULL;  // all are awake by then
  const char* reason = trigger();
  if (reason) return reason;
  size_t used = 0;
  for (int i = 0; i < kSleepers; i++)
    if ((reason = sleeper_check(&sleepers[i])) && used < sizeof all - 600)
      used += (size_t)snprintf(all + used, sizeof all - used, "%s; ", reason);
  return used ? all : NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"inflight", prepare, check, false}, {NULL, NULL, NULL, false}};
  return program_main_after(argc, argv, cases, (int)(kWait / 2000000));
}
