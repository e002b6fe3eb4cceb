// A program of many threads that verifies all it has after every move, move after move: memory written
// without pause, TLS, registers and AVX state, timers, descriptors; and that its mappings, descriptors and
// threads do not grow.
#include "program.h"
#include "registers.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

enum { kPage = 4096, kWriters = 3, kPages = 2048, kFewPages = 48 };
static int pages = kPages;

// Every worker goes through its own gate, which a check closes while it looks.
typedef struct {
  pthread_mutex_t lock;
  char wrong[300];
  uint64_t work;
} Gate;

static void complain(Gate* gate, const char* reason) {
  if (reason && !gate->wrong[0]) snprintf(gate->wrong, sizeof gate->wrong, "%s", reason);
}

// ---- writers: 8 MiB each, a generation per page
typedef struct {
  Gate gate;
  int index;
  char* memory;
  uint32_t generation[kPages];
} Writer;
static Writer writers[kWriters];
static __thread uint64_t tls[600];
static __thread int tls_index = -1;

static uint64_t page_seed(const Writer* w, int page) {
  return ((uint64_t)w->index << 60) ^ ((uint64_t)page << 32) ^ w->generation[page];
}
static void verify_page(Writer* w, int page) {
  const char* at = w->memory + (size_t)page * kPage;
  long wrong = w->generation[page] ? differs(at, kPage, page_seed(w, page)) : all_zero(at, kPage);
  if (wrong >= 0)
    complain(&w->gate, fail("writer %d page %d generation %u differs at %#lx", w->index, page,
                            w->generation[page], wrong));
}
static void* writer_main(void* argument) {
  Writer* w = argument;
  tls_index = w->index;
  fill(tls, sizeof tls, (uint64_t)w->index);
  for (uint64_t random = (uint64_t)w->index;;) {
    pthread_mutex_lock(&w->gate.lock);
    for (int i = 0; i < 16; i++, w->gate.work++) {
      random = mix(random + 12345);
      int page = (int)(random % (uint64_t)pages);
      if (random >> 60 == 0) {
        // MADV_REMOVE: MADV_DONTNEED only forgets the mapping of shared memory, not what is in it.
        if (madvise(w->memory + (size_t)page * kPage, kPage, w->index == 2 ? MADV_REMOVE : MADV_DONTNEED))
          complain(&w->gate, "madvise");
        w->generation[page] = 0;
      } else if (random >> 60 < 4) {
        verify_page(w, page);
      } else {
        w->generation[page]++;
        fill(w->memory + (size_t)page * kPage, kPage, page_seed(w, page));
      }
    }
    if (tls_index != w->index || differs(tls, sizeof tls, (uint64_t)w->index) >= 0)
      complain(&w->gate, "TLS of a writer");
    pthread_mutex_unlock(&w->gate.lock);
    pause_ms(1);
  }
  return NULL;
}

// ---- registers: spin a while, look, rest, again
static Gate register_gate = {.lock = PTHREAD_MUTEX_INITIALIZER};
static volatile int spin_stop;
static void* register_main(void* unused) {
  static Registers want, have;
  for (uint64_t seed = 1;; seed++) {
    registers_choose(&want, seed);
    spin(&want, &have, &spin_stop);
    registers_plain();
    const char* reason = registers_differ(&want, &have);
    pthread_mutex_lock(&register_gate.lock);
    complain(&register_gate, reason);
    register_gate.work++;
    pthread_mutex_unlock(&register_gate.lock);
    spin_stop = 0;
    pause_ms(2);
  }
  return unused;
}

// ---- a loop over epoll: timerfd, eventfd, pipe; a POSIX timer that signals this thread
static Gate loop_gate = {.lock = PTHREAD_MUTEX_INITIALIZER};
static int loop_set, loop_timer, loop_event, loop_pipe[2], loop_file;
static uint64_t loop_ticks, loop_written, loop_read;
static volatile sig_atomic_t posix_ticks;
static int posix_timer, posix_value_wrong;
static void on_timer(int number, siginfo_t* info, void* context) {
  (void)number;
  (void)context;
  posix_ticks++;
  if (info->si_value.sival_int != 31337) posix_value_wrong = 1;
}
static void loop_pipe_ready(void) {
  uint64_t words[8];
  ssize_t got = read(loop_pipe[0], words, sizeof words);
  for (ssize_t i = 0; i < got / 8; i++)
    if (words[i] != mix(loop_read++)) complain(&loop_gate, fail("pipe: word %lu", loop_read - 1));
  // Never quite empty: there is something in it at each freeze.
  while (loop_written < loop_read + 40) {
    uint64_t word = mix(loop_written++);
    if (write(loop_pipe[1], &word, 8) != 8) complain(&loop_gate, "pipe: write");
  }
}
static void loop_timer_ready(void) {
  uint64_t ticks = 0, one = 1;
  if (read(loop_timer, &ticks, 8) != 8 || !ticks) complain(&loop_gate, "timerfd: read");
  loop_ticks += ticks;
  if (write(loop_event, &one, 8) != 8) complain(&loop_gate, "eventfd: write");
  spin_stop = 1;
}
static void loop_event_ready(void) {
  uint64_t value;
  if (read(loop_event, &value, 8) != 8) complain(&loop_gate, "eventfd: read");
  off_t at = lseek(loop_file, 0, SEEK_CUR);
  uint64_t word = (uint64_t)at;
  if (at != (off_t)(loop_gate.work % 512) * 8)
    complain(&loop_gate, fail("file offset %ld after %lu turns", (long)at, loop_gate.work));
  if (write(loop_file, &word, 8) != 8) complain(&loop_gate, "file: write");
  loop_gate.work++;
  if (loop_gate.work % 512 == 0) lseek(loop_file, 0, SEEK_SET);
}
static void* loop_main(void* unused) {
  struct sigevent event = {
      .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 5, .sigev_value.sival_int = 31337};
  event._sigev_un._tid = (int)syscall(SYS_gettid);
  MUST(!syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &posix_timer));
  struct itimerspec spec = {{0, 3000000}, {0, 3000000}};
  MUST(!syscall(SYS_timer_settime, posix_timer, 0, &spec, NULL));
  for (;;) {
    struct epoll_event events[4];
    int count = epoll_wait(loop_set, events, 4, 5000);
    if (count < 0 && errno == EINTR) continue;  // our own timer's handler
    pthread_mutex_lock(&loop_gate.lock);
    if (count <= 0) complain(&loop_gate, fail("epoll_wait gave %d, %s", count, strerror(errno)));
    for (int i = 0; i < count; i++) {
      if (events[i].data.u64 == 0xfeed0001)
        loop_timer_ready();
      else if (events[i].data.u64 == 0xfeed0002)
        loop_event_ready();
      else if (events[i].data.u64 == 0xfeed0003)
        loop_pipe_ready();
      else
        complain(&loop_gate, "epoll: unknown data");
    }
    pthread_mutex_unlock(&loop_gate.lock);
    pause_ms(1);
  }
  return unused;
}
static void loop_prepare(void) {
  loop_set = epoll_create1(0);
  loop_timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  loop_event = eventfd(0, EFD_NONBLOCK);
  loop_file = open(program_path("loop.dat"), O_RDWR | O_CREAT | O_TRUNC, 0644);
  MUST(!pipe2(loop_pipe, O_NONBLOCK));
  MUST(loop_set >= 0 && loop_timer >= 0 && loop_event >= 0 && loop_file >= 0);
  // The size of the file never changes, so that an image of this program can be restored often.
  MUST(!ftruncate(loop_file, 4096));
  struct itimerspec spec = {{0, 2000000}, {0, 2000000}};
  MUST(!timerfd_settime(loop_timer, 0, &spec, NULL));
  const int fds[] = {loop_timer, loop_event, loop_pipe[0]};
  for (uint64_t i = 0; i < 3; i++) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0xfeed0001 + i};
    MUST(!epoll_ctl(loop_set, EPOLL_CTL_ADD, fds[i], &event));
  }
  loop_pipe_ready();
  struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
  MUST(!sigaction(SIGRTMIN + 5, &action, NULL));
}

// ---- growth
typedef struct {
  int maps, fds, threads;
} Counts;
static Counts baseline;
static int entries(const char* path) {
  DIR* list = opendir(path);
  int count = 0;
  for (struct dirent* one; (one = readdir(list));) count += one->d_name[0] != '.';
  closedir(list);
  return count;
}
static Counts count_all(void) {
  Counts now = {0, entries("/proc/self/fd"), entries("/proc/self/task")};
  for (const char* at = slurp("/proc/self/maps"); (at = strchr(at, '\n')); at++) now.maps++;
  return now;
}

static void prepare(void) {
  pthread_t thread;
  for (int i = 0; i < kWriters; i++) {
    Writer* w = &writers[i];
    w->index = i;
    pthread_mutex_init(&w->gate.lock, NULL);
    w->memory = mmap(NULL, (size_t)pages * kPage, PROT_READ | PROT_WRITE,
                     (i == 2 ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    MUST(w->memory != MAP_FAILED);
  }
  loop_prepare();
  MUST(!pthread_create(&thread, NULL, register_main, NULL) &&
       !pthread_create(&thread, NULL, loop_main, NULL));
  for (int i = 0; i < kWriters; i++) MUST(!pthread_create(&thread, NULL, writer_main, &writers[i]));
}

/// The same with little memory, for tests that move it hundreds of times.
static void prepare_small(void) {
  pages = kFewPages;
  prepare();
}

// Work done since the last check: every worker must still be working.
static const char* gate_check(Gate* gate, uint64_t* before, const char* name) {
  for (int i = 0; i < 20000; i++) {
    pthread_mutex_lock(&gate->lock);
    bool worked = gate->work > *before || gate->wrong[0];
    pthread_mutex_unlock(&gate->lock);
    if (worked) break;
    pause_ms(1);
  }
  pthread_mutex_lock(&gate->lock);
  bool works = gate->work > *before;
  *before = gate->work;
  pthread_mutex_unlock(&gate->lock);
  EXPECT(!gate->wrong[0], "%s: %s", name, gate->wrong);
  EXPECT(works, "%s: stands still", name);
  return NULL;
}

static const char* check(int round) {
  static uint64_t before[kWriters + 2], ticks_before;
  static long posix_before;
  const char* reason = NULL;
  for (int i = 0; i < kWriters && !reason; i++) {
    pthread_mutex_lock(&writers[i].gate.lock);
    for (int page = 0; page < pages; page++) verify_page(&writers[i], page);
    pthread_mutex_unlock(&writers[i].gate.lock);
    reason = gate_check(&writers[i].gate, &before[i], "writer");
  }
  if (!reason) reason = gate_check(&register_gate, &before[kWriters], "registers");
  if (!reason) reason = gate_check(&loop_gate, &before[kWriters + 1], "loop");
  if (reason) return reason;
  for (int i = 0; i < 20000 && (loop_ticks == ticks_before || posix_ticks == posix_before); i++) pause_ms(1);
  EXPECT(loop_ticks > ticks_before && posix_ticks > posix_before && !posix_value_wrong,
         "timers: %lu and %ld ticks, %d", loop_ticks, (long)posix_ticks, posix_value_wrong);
  ticks_before = loop_ticks;
  posix_before = posix_ticks;
  Counts now = count_all();
  if (round == 1) baseline = now;
  EXPECT(now.maps <= baseline.maps && now.fds == baseline.fds && now.threads == baseline.threads,
         "%d mappings %d descriptors %d threads, at the first look %d %d %d", now.maps, now.fds, now.threads,
         baseline.maps, baseline.fds, baseline.threads);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"everything", prepare, check, false},
                               {"small", prepare_small, check, true},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
