// Known values in every register, spinning until told to look. Shared by the programs that watch their
// registers.
#pragma once

#include "program.h"

typedef struct {
  uint64_t gpr[14];
  uint8_t vector[16][32] __attribute__((aligned(32)));
  uint32_t mxcsr;
  uint16_t x87;
  uint64_t flags;
} Registers;

// Loads every register from `in`, spins until *stop, stores them all into `out`.
__attribute__((naked, noinline)) static void spin(const Registers* in __attribute__((unused)),
                                                  Registers* out __attribute__((unused)),
                                                  volatile int* stop __attribute__((unused))) {
  // The callers' arguments: rdi in, rsi out, rdx stop.
  __asm__ volatile(
      "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
      "push %rsi\n"  // out
      "vmovaps 128(%rdi), %ymm0; vmovaps 160(%rdi), %ymm1; vmovaps 192(%rdi), %ymm2; vmovaps 224(%rdi), "
      "%ymm3\n"
      "vmovaps 256(%rdi), %ymm4; vmovaps 288(%rdi), %ymm5; vmovaps 320(%rdi), %ymm6; vmovaps 352(%rdi), "
      "%ymm7\n"
      "vmovaps 384(%rdi), %ymm8; vmovaps 416(%rdi), %ymm9; vmovaps 448(%rdi), %ymm10; vmovaps 480(%rdi), "
      "%ymm11\n"
      "vmovaps 512(%rdi), %ymm12; vmovaps 544(%rdi), %ymm13; vmovaps 576(%rdi), %ymm14; vmovaps 608(%rdi), "
      "%ymm15\n"
      "ldmxcsr 640(%rdi); fldcw 644(%rdi)\n"
      "mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 32(%rdi), %rsi; mov 40(%rdi), %rbp\n"
      "mov 48(%rdi), %r8; mov 56(%rdi), %r9; mov 64(%rdi), %r10; mov 72(%rdi), %r11\n"
      "mov 80(%rdi), %r12; mov 88(%rdi), %r13; mov 96(%rdi), %r14; mov 104(%rdi), %r15\n"
      "mov 24(%rdi), %rdi\n"
      "stc; std\n"
      "1: lea 1(%rcx), %rcx\n"  // rcx counts, rdx is where to look whether to stop
      "xchg %rcx, %rax; xchg %rcx, %rax\n"
      "cmpl $0, (%rdx); je 1b\n"
      "xchg %rdi, (%rsp)\n"  // out, and the value of rdi on the stack
      "mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rsi, 32(%rdi); mov %rbp, 40(%rdi)\n"
      "pop %rax; mov %rax, 24(%rdi)\n"
      "pushfq; pop %rax; mov %rax, 648(%rdi); cld\n"
      "mov %r8, 48(%rdi); mov %r9, 56(%rdi); mov %r10, 64(%rdi); mov %r11, 72(%rdi)\n"
      "mov %r12, 80(%rdi); mov %r13, 88(%rdi); mov %r14, 96(%rdi); mov %r15, 104(%rdi)\n"
      "mov %rcx, 16(%rdi)\n"
      "vmovaps %ymm0, 128(%rdi); vmovaps %ymm1, 160(%rdi); vmovaps %ymm2, 192(%rdi); vmovaps %ymm3, "
      "224(%rdi)\n"
      "vmovaps %ymm4, 256(%rdi); vmovaps %ymm5, 288(%rdi); vmovaps %ymm6, 320(%rdi); vmovaps %ymm7, "
      "352(%rdi)\n"
      "vmovaps %ymm8, 384(%rdi); vmovaps %ymm9, 416(%rdi); vmovaps %ymm10, 448(%rdi); vmovaps %ymm11, "
      "480(%rdi)\n"
      "vmovaps %ymm12, 512(%rdi); vmovaps %ymm13, 544(%rdi); vmovaps %ymm14, 576(%rdi); vmovaps %ymm15, "
      "608(%rdi)\n"
      "stmxcsr 640(%rdi); fnstcw 644(%rdi)\n"
      "vzeroupper; fninit\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
      "ret\n");
}
_Static_assert(offsetof(Registers, vector) == 128 && offsetof(Registers, mxcsr) == 640 &&
                   offsetof(Registers, x87) == 644 && offsetof(Registers, flags) == 648,
               "the assembly knows these places");

static void registers_choose(Registers* want, uint64_t seed) {
  fill(want->gpr, sizeof want->gpr, seed);
  fill(want->vector, sizeof want->vector, seed + 1);
  want->mxcsr = 0x7f80;
  want->x87 = 0x0c7f;
}

/// After spin(): back to what C expects.
static void registers_plain(void) {
  uint32_t plain = 0x1f80;
  __asm__ volatile("ldmxcsr %0" ::"m"(plain));
}

static const char* registers_differ(const Registers* want, const Registers* have) {
  for (int i = 0; i < 14; i++)
    EXPECT(i == 2 || have->gpr[i] == want->gpr[i], "general register %d: %lx", i, have->gpr[i]);
  for (int i = 0; i < 16; i++) EXPECT(!memcmp(have->vector[i], want->vector[i], 32), "ymm%d", i);
  EXPECT((have->mxcsr & ~0x3fU) == want->mxcsr, "mxcsr %x", have->mxcsr);
  EXPECT(have->x87 == want->x87, "x87 control word %x", have->x87);
  EXPECT(have->flags & 0x400, "direction flag, flags %lx", have->flags);
  return NULL;
}
