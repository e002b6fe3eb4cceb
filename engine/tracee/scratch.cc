#include "engine/tracee/scratch.h"

#include <sys/mman.h>

// The stub never touches its stack, and every value it needs is in a register that system calls preserve.
// Behind the raised signal stands the way home for a thread whose engine has died.
asm(R"(
    .pushsection .rodata
    .globl godwit_stub_begin, godwit_stub_raised, godwit_stub_end
    .hidden godwit_stub_begin, godwit_stub_raised, godwit_stub_end
godwit_stub_begin:
1:  test %r12, %r12
    jz 2f
    mov 0(%rbx), %rax
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    syscall
    mov %rax, 56(%rbx)
    add $64, %rbx
    dec %r12
    jmp 1b
2:  mov $39, %eax               # getpid
    syscall
    mov %eax, %edi
    mov $186, %eax              # gettid
    syscall
    mov %eax, %esi
    mov %r13d, %edx
    mov $234, %eax              # tgkill; signal 0 raises nothing
    syscall
godwit_stub_raised:
    mov $15, %eax               # rt_sigreturn
    syscall
    ud2
godwit_stub_end:
    .popsection
)");

extern "C" {
extern const std::byte godwit_stub_begin[], godwit_stub_raised[], godwit_stub_end[];
}

namespace godwit::tracee {

std::span<const std::byte> stub_code() {
  return {godwit_stub_begin, godwit_stub_end};
}

uint64_t stub_raised_offset() {
  return static_cast<uint64_t>(godwit_stub_raised - godwit_stub_begin);
}

bool may_be_scratch(const Vma& vma) {
  return !vma.shared && vma.inode == 0 && vma.path.empty() && vma.range.size() == kScratchSize &&
         vma.prot == (PROT_READ | PROT_WRITE | PROT_EXEC);
}

}  // namespace godwit::tracee
