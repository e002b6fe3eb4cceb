// Signals and timers: dispositions, what is pending and with which values, interval timers, POSIX timers by
// their ids.
#include "program.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/time.h>

static volatile int caught_number, caught_value, caught_code;
static void on_signal(int number, siginfo_t* info, void* context) {
  (void)context;
  caught_number = number;
  caught_value = info->si_value.sival_int;
  caught_code = info->si_code;
}

// ---- dispositions: handlers with all flags, ignored ones, and that they run
typedef struct {
  void* handler;
  unsigned long flags;
  void* restorer;
  uint64_t mask;
} KernelAction;
static KernelAction actions_before[65];
static void read_action(int number, KernelAction* out) {
  memset(out, 0, sizeof *out);
  syscall(SYS_rt_sigaction, number, NULL, out, 8);
}
static void handlers_prepare(void) {
  static const int flags[] = {SA_SIGINFO, SA_SIGINFO | SA_RESTART, SA_SIGINFO | SA_NODEFER,
                              SA_SIGINFO | SA_ONSTACK};
  for (int i = 0; i < 8; i++) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = flags[i % 4]};
    sigaddset(&action.sa_mask, SIGRTMIN + 20 + i);
    MUST(!sigaction(SIGRTMIN + 20 + i, &action, NULL));
  }
  struct sigaction plain = {.sa_handler = SIG_IGN};
  MUST(!sigaction(SIGHUP, &plain, NULL) && !sigaction(SIGTSTP, &plain, NULL));
  plain.sa_flags = SA_NOCLDWAIT | SA_NOCLDSTOP;
  plain.sa_handler = SIG_DFL;
  MUST(!sigaction(SIGCHLD, &plain, NULL));
  for (int i = 1; i <= 64; i++) read_action(i, &actions_before[i]);
}
static const char* handlers_check(int round) {
  for (int i = 1; i <= 64; i++) {
    if (i == 32 || i == 33) continue;  // the C library takes these when threads come
    KernelAction after;
    read_action(i, &after);
    EXPECT(!memcmp(&after, &actions_before[i], sizeof after), "signal %d: handler %p flags %lx mask %lx", i,
           after.handler, after.flags, after.mask);
  }
  for (int i = 0; i < 8; i++) {
    union sigval value = {.sival_int = round * 100 + i};
    caught_number = 0;
    sigqueue(getpid(), SIGRTMIN + 20 + i, value);
    EXPECT(caught_number == SIGRTMIN + 20 + i && caught_value == round * 100 + i, "signal %d: %d %d", i,
           caught_number, caught_value);
  }
  raise(SIGHUP);
  return NULL;
}

// ---- pending: blocked, queued with values, on the process and on one thread; the order is kept
static const int kQueued = 5;
static sigset_t pending_set;
static void pending_queue(int round) {
  for (int i = 0; i < kQueued; i++) {
    union sigval value = {.sival_int = round * 10 + i};
    MUST(!sigqueue(getpid(), SIGRTMIN + 9, value));
    MUST(!pthread_sigqueue(pthread_self(), SIGRTMIN + 10, value));
  }
  MUST(!kill(getpid(), SIGUSR2));
}
static void pending_prepare(void) {
  sigemptyset(&pending_set);
  sigaddset(&pending_set, SIGRTMIN + 9);
  sigaddset(&pending_set, SIGRTMIN + 10);
  sigaddset(&pending_set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &pending_set, NULL);
  pending_queue(0);
}
static const char* pending_check(int round) {
  const struct timespec none = {0, 0};
  siginfo_t info;
  for (int number = SIGRTMIN + 9; number <= SIGRTMIN + 10; number++)
    for (int i = 0; i < kQueued; i++) {
      sigset_t one;
      sigemptyset(&one);
      sigaddset(&one, number);
      memset(&info, 0, sizeof info);
      int got = sigtimedwait(&one, &info, &none);
      EXPECT(got == number, "signal %d, the %dth: got %d", number, i, got);
      EXPECT(info.si_value.sival_int == (round - 1) * 10 + i, "signal %d: value %d", number,
             info.si_value.sival_int);
      EXPECT(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
             "signal %d: code %d from %d", number, info.si_code, info.si_pid);
    }
  sigset_t left;
  sigpending(&left);
  EXPECT(sigismember(&left, SIGUSR2), "SIGUSR2 is lost");
  EXPECT(sigtimedwait(&pending_set, &info, &none) == SIGUSR2 && info.si_code == SI_USER,
         "SIGUSR2 with code %d", info.si_code);
  EXPECT(sigtimedwait(&pending_set, &info, &none) == -1, "a signal too many");
  pending_queue(round);
  return NULL;
}

// ---- pending for another thread, as pthread_kill and the preemption of Go leave them
#define kOthers (SIGRTMIN + 11)
static sem_t others_turn, others_done;
static siginfo_t others_got;
static pthread_t other;
static void* other_main(void* nothing) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, kOthers);
  for (;;) {
    while (sem_wait(&others_turn)) {
    }
    const struct timespec none = {0, 0};
    memset(&others_got, 0, sizeof others_got);
    // glibc's sigtimedwait() calls SI_TKILL SI_USER.
    if (syscall(SYS_rt_sigtimedwait, &set, &others_got, &none, 8) != kOthers) others_got.si_signo = -1;
    sem_post(&others_done);
  }
  return nothing;
}
static void others_prepare(void) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);  // it inherits that: what the other cases get is not for it
  MUST(!sem_init(&others_turn, 0, 0) && !sem_init(&others_done, 0, 0));
  MUST(!pthread_create(&other, NULL, other_main, NULL) && !pthread_kill(other, kOthers));
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}
static const char* others_check(int round) {
  (void)round;
  sem_post(&others_turn);
  while (sem_wait(&others_done)) {
  }
  EXPECT(others_got.si_signo == kOthers && others_got.si_code == SI_TKILL && others_got.si_pid == getpid(),
         "signal %d, code %d from %d", others_got.si_signo, others_got.si_code, others_got.si_pid);
  MUST(!pthread_kill(other, kOthers));
  return NULL;
}

// ---- interval timers: what remains only ever shrinks, at the pace of the clock
static int64_t itimer_set_at;
static void itimers_prepare(void) {
  struct itimerval real = {{500, 0}, {1000, 0}}, virtual = {{700, 0}, {800, 0}}, prof = {{0, 0}, {900, 0}};
  MUST(!setitimer(ITIMER_REAL, &real, NULL) && !setitimer(ITIMER_VIRTUAL, &virtual, NULL) &&
       !setitimer(ITIMER_PROF, &prof, NULL));
  itimer_set_at = now_ns(CLOCK_MONOTONIC);
}
static const char* itimers_check(int round) {
  (void)round;
  struct itimerval real, virtual, prof;
  int64_t elapsed = now_ns(CLOCK_MONOTONIC) - itimer_set_at;
  getitimer(ITIMER_REAL, &real);
  int64_t after = now_ns(CLOCK_MONOTONIC) - itimer_set_at;
  getitimer(ITIMER_VIRTUAL, &virtual);
  getitimer(ITIMER_PROF, &prof);
  int64_t gone = 1000000000000 - ((int64_t)real.it_value.tv_sec * 1000000000 + real.it_value.tv_usec * 1000);
  // It may have stood still while the process was frozen, never run ahead.
  EXPECT(gone <= after + 10000000, "%ld ns gone of the timer in %ld ns", (long)gone, (long)after);
  EXPECT(gone >= elapsed / 2 - 5000000000, "%ld ns gone of the timer in %ld ns", (long)gone, (long)elapsed);
  EXPECT(real.it_interval.tv_sec == 500, "interval %ld", real.it_interval.tv_sec);
  EXPECT(virtual.it_interval.tv_sec == 700 && virtual.it_value.tv_sec > 700 && virtual.it_value.tv_sec <= 800,
         "virtual %ld", virtual.it_value.tv_sec);
  EXPECT(prof.it_interval.tv_sec == 0 && prof.it_value.tv_sec > 800 && prof.it_value.tv_sec <= 900,
         "prof %ld", prof.it_value.tv_sec);
  return NULL;
}

// ---- POSIX timers: ids with gaps, kinds of notification, intervals, overruns
enum { kTimers = 5 };
static int timer_ids[kTimers];
static int kernel_timer_create(clockid_t clock, struct sigevent* event) {
  int id = -1;
  MUST(!syscall(SYS_timer_create, clock, event, &id));
  return id;
}
static void timer_arm(int id, int flags, int64_t first_ns, int64_t interval_ns) {
  struct itimerspec spec = {{interval_ns / 1000000000, interval_ns % 1000000000},
                            {first_ns / 1000000000, first_ns % 1000000000}};
  MUST(!syscall(SYS_timer_settime, id, flags, &spec, NULL));
}
static void timers_prepare(void) {
  sigset_t set;
  sigemptyset(&set);
  for (int i = 0; i < kTimers; i++) sigaddset(&set, SIGRTMIN + 12 + i);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  for (int i = 0; i < kTimers; i++) {
    int gap = kernel_timer_create(CLOCK_MONOTONIC, NULL);
    struct sigevent event = {.sigev_notify = i == 1 ? SIGEV_NONE : SIGEV_SIGNAL,
                             .sigev_signo = SIGRTMIN + 12 + i};
    event.sigev_value.sival_int = 5000 + i;
    if (i == 2) {
      event.sigev_notify = SIGEV_THREAD_ID;
      event._sigev_un._tid = (int)syscall(SYS_gettid);
    }
    static const clockid_t clocks[kTimers] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC, CLOCK_REALTIME,
                                              CLOCK_BOOTTIME, CLOCK_MONOTONIC};
    timer_ids[i] = kernel_timer_create(clocks[i], &event);
    MUST(!syscall(SYS_timer_delete, gap));
  }
  timer_arm(timer_ids[0], 0, 1000000, 1000000);            // overruns pile up behind the blocked signal
  timer_arm(timer_ids[1], 0, 500000000000, 100000000000);  // far away, only to be read
  timer_arm(timer_ids[2], 0, 20000000, 20000000);
  timer_arm(timer_ids[3], TIMER_ABSTIME, now_ns(CLOCK_BOOTTIME) + 10000000, 0);
  pause_ms(40);
}
static const char* timer_fires(int i, int wait_s, int* overrun) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGRTMIN + 12 + i);
  siginfo_t info = {0};
  const struct timespec limit = {wait_s, 0};
  int got = sigtimedwait(&one, &info, &limit);
  EXPECT(got == SIGRTMIN + 12 + i, "timer %d does not fire: %d", i, got);
  EXPECT(info.si_code == SI_TIMER && info.si_timerid == timer_ids[i] && info.si_value.sival_int == 5000 + i,
         "timer %d: code %d id %d value %d", i, info.si_code, info.si_timerid, info.si_value.sival_int);
  *overrun = (int)syscall(SYS_timer_getoverrun, timer_ids[i]);
  return NULL;
}
static const char* timers_check(int round) {
  struct itimerspec spec;
  int overrun;
  for (int i = 0; i < kTimers; i++)
    EXPECT(!syscall(SYS_timer_gettime, timer_ids[i], &spec), "timer id %d: %s", timer_ids[i],
           strerror(errno));
  const char* reason = timer_fires(0, 10, &overrun);
  if (reason) return reason;
  // What had piled up behind the signal that was pending during the move is not carried over; it piles up
  // anew.
  pause_ms(40);
  if ((reason = timer_fires(0, 10, &overrun))) return reason;
  EXPECT(overrun >= 1, "overrun %d of a 1 ms timer blocked for 40 ms", overrun);
  syscall(SYS_timer_gettime, timer_ids[0], &spec);
  EXPECT(spec.it_interval.tv_nsec == 1000000, "interval %ld", spec.it_interval.tv_nsec);
  syscall(SYS_timer_gettime, timer_ids[1], &spec);
  EXPECT(spec.it_value.tv_sec > 200 && spec.it_value.tv_sec <= 500 && spec.it_interval.tv_sec == 100,
         "far timer: %ld", spec.it_value.tv_sec);
  if ((reason = timer_fires(2, 10, &overrun)) || (reason = timer_fires(3, 10, &overrun))) return reason;
  syscall(SYS_timer_gettime, timer_ids[4], &spec);
  EXPECT(!spec.it_value.tv_sec && !spec.it_value.tv_nsec, "the timer that was never armed runs");
  int next = kernel_timer_create(CLOCK_MONOTONIC, NULL);
  for (int i = 0; i < kTimers; i++) EXPECT(next != timer_ids[i], "id %d given twice", next);
  syscall(SYS_timer_delete, next);
  timer_arm(timer_ids[3], TIMER_ABSTIME, now_ns(CLOCK_BOOTTIME) + 10000000 * (round % 3), 0);
  return NULL;
}

// ---- clocks: never backwards, and no leap larger than the move can explain
static volatile int64_t clock_last[2], clock_back[2], clock_leap[2], clock_looks;
static void* clock_main(void* unused) {
  static const clockid_t clocks[2] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};
  for (;; clock_looks++) {
    for (int i = 0; i < 2; i++) {
      int64_t now = now_ns(clocks[i]);
      if (clock_last[i] && now < clock_last[i]) clock_back[i] = clock_last[i] - now;
      if (clock_last[i] && now - clock_last[i] > clock_leap[i]) clock_leap[i] = now - clock_last[i];
      clock_last[i] = now;
    }
    struct timespec rest = {0, 200000};
    nanosleep(&rest, NULL);
  }
  return unused;
}
static void clock_prepare(void) {
  pthread_t thread;
  MUST(!pthread_create(&thread, NULL, clock_main, NULL));
}
static const char* clock_check(int round) {
  (void)round;
  int64_t looks = clock_looks;
  while (clock_looks < looks + 3) pause_ms(1);
  for (int i = 0; i < 2; i++) {
    EXPECT(!clock_back[i], "clock %d went back by %ld ns", i, (long)clock_back[i]);
    EXPECT(clock_leap[i] < 60000000000, "clock %d leapt by %ld ns", i, (long)clock_leap[i]);
  }
  struct timespec raw;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &raw);  // the kernel's word against the vdso's
  int64_t difference = now_ns(CLOCK_MONOTONIC) - ((int64_t)raw.tv_sec * 1000000000 + raw.tv_nsec);
  EXPECT(difference >= 0 && difference < 5000000000, "vdso and kernel differ by %ld ns", (long)difference);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"handlers", handlers_prepare, handlers_check, false},
                               {"pending", pending_prepare, pending_check, false},
                               {"others", others_prepare, others_check, false},
                               {"itimers", itimers_prepare, itimers_check, false},
                               {"timers", timers_prepare, timers_check, false},
                               {"clock", clock_prepare, clock_check, false},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
