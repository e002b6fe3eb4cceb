// Threads: registers, TLS, names, placement, masks, what the kernel keeps for each, and joining them after
// the move.
#include "program.h"
#include "registers.h"

#include <linux/futex.h>
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <ucontext.h>

// ---- registers: a thread spins with known values in every register until it is told to look
static Registers registers_want, registers_have;
static volatile int registers_stop, registers_done;

static void* registers_thread(void* unused) {
  for (;;) {
    spin(&registers_want, &registers_have, &registers_stop);
    registers_plain();
    registers_done = 1;
    while (registers_done) pause_ms(1);
  }
  return unused;
}
static void registers_prepare(void) {
  registers_choose(&registers_want, 31);
  pthread_t thread;
  MUST(!pthread_create(&thread, NULL, registers_thread, NULL));
}
static const char* registers_check(int round) {
  (void)round;
  registers_stop = 1;
  while (!registers_done) pause_ms(1);
  Registers have = registers_have;
  registers_stop = 0;
  registers_done = 0;
  return registers_differ(&registers_want, &have);
}

// ---- a crew of threads that all wait on a condition and each look at themselves when told
enum { kCrew = 12 };
typedef struct {
  pthread_t thread;
  int tid, index, asked, answered, policy, nice, slack;
  uint64_t mask, gs;
  char name[16];
  void *alternate, *robust;
  cpu_set_t cpus;
  char wrong[200];
} Member;
static Member crew[kCrew];
static pthread_mutex_t crew_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t crew_cond = PTHREAD_COND_INITIALIZER;
static __thread uint64_t tls_word = 0x1234;
static __thread char tls_block[5000];

static uint64_t signal_mask(void) {
  uint64_t mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
  return mask;
}
static void* robust_list(void) {
  void* head = NULL;
  size_t size = 0;
  syscall(SYS_get_robust_list, 0, &head, &size);
  return head;
}
static uint64_t gs_base(void) {
  uint64_t base = 0;
  syscall(SYS_arch_prctl, 0x1004, &base);
  return base;
}

static void member_set_up(Member* me) {
  me->tid = (int)syscall(SYS_gettid);
  snprintf(me->name, sizeof me->name, "crew-%d", me->index);
  prctl(PR_SET_NAME, me->name);
  me->slack = 1000 * (me->index + 1);
  prctl(PR_SET_TIMERSLACK, me->slack);
  uint64_t mask = (1ULL << (SIGUSR1 - 1)) | (1ULL << (40 + me->index));
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
  me->mask = signal_mask();
  stack_t alternate = {.ss_sp = malloc(32768), .ss_size = 32768, .ss_flags = 0};
  sigaltstack(&alternate, NULL);
  me->alternate = alternate.ss_sp;
  me->robust = robust_list();
  me->gs = 0x100000000ULL + (uint64_t)me->index * 4096;
  syscall(SYS_arch_prctl, 0x1001, me->gs);
  CPU_ZERO(&me->cpus);
  CPU_SET(me->index % 2, &me->cpus);
  if (me->index % 3 == 0) sched_setaffinity(0, sizeof me->cpus, &me->cpus);
  sched_getaffinity(0, sizeof me->cpus, &me->cpus);
  struct sched_param none = {0};
  if (me->index % 4 == 1) sched_setscheduler(0, SCHED_BATCH, &none);
  if (me->index % 4 == 2) sched_setscheduler(0, SCHED_IDLE, &none);
  setpriority(PRIO_PROCESS, (id_t)me->tid, me->index);
  me->policy = sched_getscheduler(0);
  me->nice = getpriority(PRIO_PROCESS, 0);
  tls_word = mix((uint64_t)me->index);
  fill(tls_block, sizeof tls_block, (uint64_t)me->index + 900);
}

static const char* rseq_works(void) {
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  EXPECT(__rseq_size > 0, "glibc has no rseq here");
  cpu_set_t before, one;
  sched_getaffinity(0, sizeof before, &before);
  for (int cpu = 0; cpu < 2; cpu++) {
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one)) continue;
    uint32_t seen = *(volatile uint32_t*)&area->cpu_id;
    EXPECT(seen == (uint32_t)cpu, "rseq says cpu %u, is on %d", seen, cpu);
  }
  sched_setaffinity(0, sizeof before, &before);
  return NULL;
}

static const char* member_check(Member* me) {
  char name[16];
  cpu_set_t cpus;
  stack_t alternate;
  prctl(PR_GET_NAME, name);
  sched_getaffinity(0, sizeof cpus, &cpus);
  sigaltstack(NULL, &alternate);
  EXPECT(syscall(SYS_gettid) == me->tid, "tid %ld, was %d", syscall(SYS_gettid), me->tid);
  EXPECT(!strcmp(name, me->name), "name %s", name);
  EXPECT(prctl(PR_GET_TIMERSLACK) == me->slack, "slack %d", prctl(PR_GET_TIMERSLACK));
  EXPECT(signal_mask() == me->mask, "mask %lx, was %lx", signal_mask(), me->mask);
  EXPECT(alternate.ss_sp == me->alternate && alternate.ss_size == 32768, "alternate stack %p",
         alternate.ss_sp);
  EXPECT(robust_list() == me->robust, "robust list %p", robust_list());
  EXPECT(gs_base() == me->gs, "gs base %lx", gs_base());
  EXPECT(CPU_EQUAL(&cpus, &me->cpus), "affinity");
  EXPECT(sched_getscheduler(0) == me->policy, "policy %d, was %d", sched_getscheduler(0), me->policy);
  EXPECT(getpriority(PRIO_PROCESS, 0) == me->nice, "nice %d, was %d", getpriority(PRIO_PROCESS, 0), me->nice);
  EXPECT(tls_word == mix((uint64_t)me->index), "TLS word");
  EXPECT(differs(tls_block, sizeof tls_block, (uint64_t)me->index + 900) < 0, "TLS block");
  return rseq_works();
}

static void* member_main(void* argument) {
  Member* me = argument;
  pthread_mutex_lock(&crew_lock);
  member_set_up(me);
  for (;;) {
    me->answered = me->asked;
    pthread_cond_broadcast(&crew_cond);
    while (me->answered == me->asked) pthread_cond_wait(&crew_cond, &crew_lock);
    const char* reason = member_check(me);
    snprintf(me->wrong, sizeof me->wrong, "%s", reason ? reason : "");
  }
  return NULL;
}
static void crew_ask(void) {
  for (int i = 0; i < kCrew; i++) crew[i].asked++;
  pthread_cond_broadcast(&crew_cond);
  for (int i = 0; i < kCrew; i++)
    while (crew[i].answered != crew[i].asked) pthread_cond_wait(&crew_cond, &crew_lock);
}
static void crew_prepare(void) {
  pthread_mutex_lock(&crew_lock);
  for (int i = 0; i < kCrew; i++) {
    crew[i].index = i;
    crew[i].asked = 1;
    MUST(!pthread_create(&crew[i].thread, NULL, member_main, &crew[i]));
  }
  for (int i = 0; i < kCrew; i++)
    while (!crew[i].answered) pthread_cond_wait(&crew_cond, &crew_lock);
  crew_ask();
  pthread_mutex_unlock(&crew_lock);
  for (int i = 0; i < kCrew; i++) MUST(!crew[i].wrong[0] || (fputs(crew[i].wrong, stderr), 0));
}
static const char* crew_check(int round) {
  (void)round;
  pthread_mutex_lock(&crew_lock);
  crew_ask();
  pthread_mutex_unlock(&crew_lock);
  for (int i = 0; i < kCrew; i++) EXPECT(!crew[i].wrong[0], "thread %d: %s", i, crew[i].wrong);
  return NULL;
}

// ---- joining: threads made before the move end after it and are joined; the kernel clears their tid word
enum { kLeavers = 4 };
static pthread_t leavers[kLeavers];
static volatile int leave;
static void* leaver(void* number) {
  int mine = leave;
  while (leave == mine) syscall(SYS_futex, &leave, FUTEX_WAIT, mine, NULL, NULL, 0);
  return (char*)number + 1000;
}
static void leavers_start(void) {
  for (long i = 0; i < kLeavers; i++) MUST(!pthread_create(&leavers[i], NULL, leaver, (void*)i));
}
static void join_prepare(void) {
  leavers_start();
}
static const char* join_check(int round) {
  leave = round;
  syscall(SYS_futex, &leave, FUTEX_WAKE, 1000, NULL, NULL, 0);
  for (long i = 0; i < kLeavers; i++) {
    void* value;
    int error = pthread_join(leavers[i], &value);
    EXPECT(!error && (long)value == i + 1000, "thread %ld: %s, value %ld", i, strerror(error), (long)value);
  }
  leavers_start();
  return NULL;
}

// ---- a robust mutex whose owner dies after the move
static pthread_mutex_t robust;
static pthread_t owner;
static volatile int owner_state;
static void* owner_main(void* unused) {
  pthread_mutex_lock(&robust);
  owner_state = 1;
  while (owner_state == 1) pause_ms(1);
  return unused;
}
static void robust_start(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&robust, &attributes);
  owner_state = 0;
  MUST(!pthread_create(&owner, NULL, owner_main, NULL));
  while (!owner_state) pause_ms(1);
}
static const char* robust_check(int round) {
  (void)round;
  owner_state = 2;
  pthread_join(owner, NULL);
  int error = pthread_mutex_lock(&robust);
  EXPECT(error == EOWNERDEAD, "locking gave %s", strerror(error));
  pthread_mutex_consistent(&robust);
  pthread_mutex_unlock(&robust);
  pthread_mutex_destroy(&robust);
  robust_start();
  return NULL;
}

// ---- a thread that is inside a signal handler, on its alternate stack, while it moves
static volatile int handler_state;
static volatile uint64_t handler_canary;
static void handler(int number, siginfo_t* info, void* context) {
  (void)number;
  (void)context;
  uint64_t local[64];
  fill(local, sizeof local, 55);
  handler_state = info->si_value.sival_int == 4711 ? 1 : -1;
  while (handler_state == 1) pause_ms(1);
  handler_canary = differs(local, sizeof local, 55) < 0;
}
static void* handled_main(void* unused) {
  stack_t alternate = {.ss_sp = malloc(65536), .ss_size = 65536, .ss_flags = 0};
  sigaltstack(&alternate, NULL);
  for (;;) {
    while (handler_state != 3) pause_ms(1);
    handler_state = 0;
    uint64_t local[64];
    fill(local, sizeof local, 56);
    union sigval value = {.sival_int = 4711};
    pthread_sigqueue(pthread_self(), SIGRTMIN + 7, value);
    handler_state = differs(local, sizeof local, 56) < 0 ? 4 : -2;
  }
  return unused;
}
static void handler_prepare(void) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  MUST(!sigaction(SIGRTMIN + 7, &action, NULL));
  pthread_t thread;
  handler_state = 3;
  MUST(!pthread_create(&thread, NULL, handled_main, NULL));
  while (handler_state != 1) pause_ms(1);
}
static const char* handler_check(int round) {
  (void)round;
  EXPECT(handler_state == 1, "state %d", handler_state);
  handler_state = 2;
  while (handler_state == 2) pause_ms(1);
  EXPECT(handler_state == 4, "the frame below the handler changed, state %d", handler_state);
  EXPECT(handler_canary == 1, "the handler's own frame changed");
  handler_state = 3;
  while (handler_state != 1) pause_ms(1);
  return NULL;
}

// ---- a hundred threads asleep
enum { kMany = 100 };
static volatile int many_go, many_answers;
static void* many_main(void* unused) {
  for (int seen = 0;;) {
    while (many_go == seen) syscall(SYS_futex, &many_go, FUTEX_WAIT, seen, NULL, NULL, 0);
    seen = many_go;
    __atomic_add_fetch(&many_answers, 1, __ATOMIC_SEQ_CST);
  }
  return unused;
}
static void many_prepare(void) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 65536);
  pthread_t thread;
  for (int i = 0; i < kMany; i++) MUST(!pthread_create(&thread, &small, many_main, NULL));
}
static const char* many_check(int round) {
  many_answers = 0;
  many_go = round;
  syscall(SYS_futex, &many_go, FUTEX_WAKE, 1000, NULL, NULL, 0);
  for (int i = 0; i < 5000 && many_answers < kMany; i++) pause_ms(1);
  EXPECT(many_answers == kMany, "%d of %d answered", many_answers, kMany);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"registers", registers_prepare, registers_check, false},
                               {"crew", crew_prepare, crew_check, false},
                               {"join", join_prepare, join_check, false},
                               {"robust", robust_start, robust_check, false},
                               {"handler", handler_prepare, handler_check, false},
                               {"many", many_prepare, many_check, false},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
