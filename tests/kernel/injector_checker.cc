#include "tests/kernel/injector_checker.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include <thread>

#include "engine/base/clock.h"

namespace {

/// What the assembly below loads before it spins, and what it finds after.
struct Area {
  uint64_t general[16];           // 0: rax rbx rcx rdx rsi rdi rbp rsp r8 .. r15; rsp is found, not loaded
  uint64_t red_zone[16];          // 128
  unsigned char vectors[32][64];  // 256
  uint64_t masks[8];              // 2304
  uint32_t mxcsr;                 // 2368
  uint16_t control;               // 2372
  uint16_t pad;
  unsigned char x87[8][16];  // 2376, ten bytes used of each
  uint32_t level;            // 2504: 0 SSE, 1 AVX, 2 AVX-512
};
static_assert(offsetof(Area, mxcsr) == 2368 && offsetof(Area, x87) == 2376 && offsetof(Area, level) == 2504);

}  // namespace

extern "C" {
Area checker_in, checker_out;
uint64_t checker_rsp;
uint32_t checker_spin;
void checker_round();
}

// One round: load everything from checker_in, spin, store everything to checker_out. Nothing of ours is on
// the stack below rsp, so that the red zone is our own.
asm(R"(
    .text
    .globl checker_round
checker_round:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    sub $136, %rsp
    stmxcsr 128(%rsp)
    fnstcw 132(%rsp)
    mov %rsp, checker_rsp(%rip)
    lea checker_in(%rip), %rdi
    .set i, 0
    .rept 16
    mov 128+8*i(%rdi), %rax
    mov %rax, -128+8*i(%rsp)
    .set i, i+1
    .endr
    fninit
    fldcw 2372(%rdi)
    .set i, 0
    .rept 8
    fldt 2376+16*i(%rdi)
    .set i, i+1
    .endr
    ldmxcsr 2368(%rdi)
    cmpl $1, 2504(%rdi)
    je 2f
    ja 3f
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movdqu 256+64*\i(%rdi), %xmm\i
    .endr
    jmp 4f
2:
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovdqu 256+64*\i(%rdi), %ymm\i
    .endr
    jmp 4f
3:
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 256+64*\i(%rdi), %zmm\i
    .endr
    .irp i, 0,1,2,3,4,5,6,7
    kmovw 2304+8*\i(%rdi), %k\i
    .endr
4:
    mov 0(%rdi), %rax
    mov 8(%rdi), %rbx
    mov 16(%rdi), %rcx
    mov 24(%rdi), %rdx
    mov 32(%rdi), %rsi
    mov 48(%rdi), %rbp
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 40(%rdi), %rdi
5:
    decl checker_spin(%rip)
    jnz 5b
    mov %rax, checker_out(%rip)
    mov %rbx, checker_out+8(%rip)
    mov %rcx, checker_out+16(%rip)
    mov %rdx, checker_out+24(%rip)
    mov %rsi, checker_out+32(%rip)
    mov %rdi, checker_out+40(%rip)
    mov %rbp, checker_out+48(%rip)
    mov %rsp, checker_out+56(%rip)
    mov %r8, checker_out+64(%rip)
    mov %r9, checker_out+72(%rip)
    mov %r10, checker_out+80(%rip)
    mov %r11, checker_out+88(%rip)
    mov %r12, checker_out+96(%rip)
    mov %r13, checker_out+104(%rip)
    mov %r14, checker_out+112(%rip)
    mov %r15, checker_out+120(%rip)
    lea checker_out(%rip), %rdi
    .set i, 0
    .rept 16
    mov -128+8*i(%rsp), %rax
    mov %rax, 128+8*i(%rdi)
    .set i, i+1
    .endr
    stmxcsr 2368(%rdi)
    fnstcw 2372(%rdi)
    .set i, 7
    .rept 8
    fstpt 2376+16*i(%rdi)
    .set i, i-1
    .endr
    cmpl $1, checker_in+2504(%rip)
    je 2f
    ja 3f
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    movdqu %xmm\i, 256+64*\i(%rdi)
    .endr
    jmp 4f
2:
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    vmovdqu %ymm\i, 256+64*\i(%rdi)
    .endr
    vzeroupper
    jmp 4f
3:
    .irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    vmovdqu64 %zmm\i, 256+64*\i(%rdi)
    .endr
    .irp i, 0,1,2,3,4,5,6,7
    kmovw %k\i, 2304+8*\i(%rdi)
    .endr
    vzeroupper
4:
    mov checker_rsp(%rip), %rsp
    ldmxcsr 128(%rsp)
    fldcw 132(%rsp)
    add $136, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
)");

namespace godwit::tracee {
namespace {

constexpr uint32_t kSpins = 20'000;
CheckReport* handler_report = nullptr;

size_t vector_bytes() {
  return checker_in.level == 2 ? 64 : checker_in.level == 1 ? 32 : 16;
}
size_t vector_count() {
  return checker_in.level == 2 ? 32 : 16;
}

void fill_area() {
  checker_in.level = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
  for (uint64_t i = 0; i < 16; ++i) {
    checker_in.general[i] = 0x0101010101010101ULL * (i + 1);
    checker_in.red_zone[i] = 0x1100110011001100ULL + i;
  }
  for (size_t i = 0; i < 32; ++i) std::memset(checker_in.vectors[i], static_cast<int>(0x40 + i), 64);
  for (uint64_t i = 0; i < 8; ++i) checker_in.masks[i] = 0x8001 + (i << 4);
  checker_in.mxcsr = 0x3f80;    // all exceptions masked, rounding down
  checker_in.control = 0x0b7f;  // rounding up, extended precision
  for (int i = 0; i < 8; ++i) {
    const long double value = 1.5L + i;
    std::memcpy(checker_in.x87[i], &value, 10);
  }
}

void check_round(CheckReport& report) {
  std::memset(&checker_out, 0xee, sizeof checker_out);
  checker_spin = kSpins;
  checker_round();
  for (size_t i = 0; i < 16; ++i) {
    const uint64_t expected = i == 7 ? checker_rsp : checker_in.general[i];
    if (checker_out.general[i] != expected) report.report("general register", static_cast<long>(i));
    if (checker_out.red_zone[i] != checker_in.red_zone[i]) report.report("red zone", static_cast<long>(i));
  }
  for (size_t i = 0; i < vector_count(); ++i) {
    if (std::memcmp(checker_out.vectors[i], checker_in.vectors[i], vector_bytes()) != 0)
      report.report("vector register", static_cast<long>(i), checker_out.vectors[i][vector_bytes() - 1]);
  }
  for (size_t i = 0; checker_in.level == 2 && i < 8; ++i) {
    if ((checker_out.masks[i] & 0xffff) != (checker_in.masks[i] & 0xffff))
      report.report("mask register", static_cast<long>(i));
  }
  if ((checker_out.mxcsr & ~0x3fU) != checker_in.mxcsr) report.report("mxcsr", checker_out.mxcsr);
  if (checker_out.control != checker_in.control) report.report("x87 control word", checker_out.control);
  for (size_t i = 0; i < 8; ++i) {
    if (std::memcmp(checker_out.x87[i], checker_in.x87[i], 10) != 0)
      report.report("x87 register", static_cast<long>(i));
  }
}

uint64_t current_mask() {
  sigset_t set;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &set);
  uint64_t mask = 0;
  std::memcpy(&mask, &set, sizeof mask);
  return mask;
}

void start_timer(int signal, long nanos) {
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signal;
  event._sigev_un._tid = ::gettid();
  timer_t timer{};
  const itimerspec every{{0, nanos}, {0, nanos}};
  if (::timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || ::timer_settime(timer, 0, &every, nullptr) != 0)
    std::abort();
}

void install_handlers(bool signals) {
  static char alternate[65536];
  const stack_t stack{alternate, 0, sizeof alternate};
  if (::sigaltstack(&stack, nullptr) != 0) std::abort();
  struct sigaction action {};
  action.sa_handler = [](int) { handler_report->handled.fetch_add(1); };
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  ::sigaction(SIGUSR2, &action, nullptr);
  ::sigaction(SIGTRAP, &action, nullptr);
  if (!signals) return;
  start_timer(SIGUSR1, 310'000);
  start_timer(SIGUSR2, 470'000);
}

/// Sleeps in one way after the other; none may fail or end early. Only this thread's own waits, with no
/// handler.
void check_sleeps(CheckReport& report, size_t index) {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  const uint64_t mask = current_mask();
  report.tids[index] = ::gettid();
  const int epoll = ::epoll_create1(0);
  const timespec time{0, 3'000'000};
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGHUP);
  for (unsigned i = 0;; ++i) {
    const Nanos start = monotonic_now();
    epoll_event event{};
    errno = 0;
    const long result = i % 3 == 0   ? ::epoll_wait(epoll, &event, 1, 3)
                        : i % 3 == 1 ? ::nanosleep(&time, nullptr)
                                     : ::sigtimedwait(&usr1, nullptr, &time);
    const bool interrupted = i % 3 != 1 && result == -1 && errno == EINTR;
    const bool right = i % 3 == 2 ? result == -1 && errno == EAGAIN : result == 0;
    if (!right && !interrupted) report.report("a sleep failed: kind, errno", i % 3, errno);
    if (!interrupted && monotonic_now() - start < std::chrono::milliseconds(3))
      report.report("a sleep ended early", i % 3);
    if (interrupted) report.interrupted.fetch_add(1);
    if (current_mask() != mask) report.report("signal mask of a sleeper");
    report.sleeps.fetch_add(1);
  }
}

}  // namespace

void CheckReport::report(const char* text, long a, long b) {
  if (wrong.fetch_add(1) == 0) snprintf(what, sizeof what, "%s %ld %ld", text, a, b);
}

void run_checker(CheckReport& report, bool signals, const std::function<void()>& ready) {
  handler_report = &report;
  fill_area();
  sigset_t block;
  sigemptyset(&block);
  sigaddset(&block, SIGHUP);
  ::pthread_sigmask(SIG_SETMASK, &block, nullptr);
  report.tids[0] = ::gettid();
  std::thread first([&] { check_sleeps(report, 1); });
  std::thread second([&] { check_sleeps(report, 2); });
  while (report.sleeps.load() < 6) ::usleep(100);
  install_handlers(signals);
  const uint64_t mask = current_mask();
  stack_t stack{}, now{};
  ::sigaltstack(nullptr, &stack);
  check_round(report);
  ready();
  for (;;) {
    check_round(report);
    if (current_mask() != mask) report.report("signal mask", static_cast<long>(current_mask()));
    ::sigaltstack(nullptr, &now);
    if (now.ss_sp != stack.ss_sp || now.ss_size != stack.ss_size || now.ss_flags != stack.ss_flags)
      report.report("alternate signal stack");
    struct sigaction trap {};
    ::sigaction(SIGTRAP, nullptr, &trap);
    if (trap.sa_handler == SIG_DFL) report.report("SIGTRAP handler");
    report.rounds.fetch_add(1);
  }
}

}  // namespace godwit::tracee
