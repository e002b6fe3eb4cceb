// The machine code of a shell: position independent, copied into its scratch area.
    .intel_syntax noprefix
    .section .rodata
    .balign 16

// Makes a vector of system calls, says that it is done, and stops.
//   r12  the vector: per call eight words, {nr, a0..a5, result}      r13  how many
//   rbx  the word that becomes 1 at the end                          r14, r15  process and thread id
// It ends in a SIGTRAP sent by itself, not in int3.
// KERNEL: int3 and single steps *force* SIGTRAP: one that is ignored or blocked is set back to SIG_DFL, and the
// process would lose its disposition. A sent signal is shown to the tracer and leaves the disposition alone.
    .global godwit_shell_stub_begin
    .global godwit_shell_stub_end
godwit_shell_stub_begin:
1:  test r13, r13
    jz 2f
    mov rax, [r12]
    mov rdi, [r12 + 8]
    mov rsi, [r12 + 16]
    mov rdx, [r12 + 24]
    mov r10, [r12 + 32]
    mov r8, [r12 + 40]
    mov r9, [r12 + 48]
    syscall
    mov [r12 + 56], rax
    add r12, 64
    dec r13
    jmp 1b
2:  mov qword ptr [rbx], 1
    mov eax, 234                // tgkill
    mov rdi, r14
    mov rsi, r15
    mov edx, 5                  // SIGTRAP
    syscall
    ud2                         // the tracer never lets it come here
godwit_shell_stub_end:

// Pid 1 of a namespace made for one process. It drops all memory but its own page, waits to be told that the process
// exists, waits for its end, waits for whatever that left behind (SIGCHLD is ignored: the kernel reaps), and ends.
//   rdi  its page, with the two pollfds of pid_namespace_init.cc at offset 2048     rsi  end of user space
//   rdx  the process's pid in the namespace
    .global godwit_init_stub_begin
    .global godwit_init_stub_end
godwit_init_stub_begin:
    mov r12, rdi
    mov r13, rdx
    lea rbx, [rdi + 2048]
    mov r14, rsi
    mov eax, 11                 // munmap(0, page)
    xor edi, edi
    mov rsi, r12
    syscall
    mov eax, 11                 // munmap(page + 4096, the rest)
    lea rdi, [r12 + 4096]
    mov rsi, r14
    sub rsi, rdi
    syscall
    mov eax, 7                  // poll({lifeline, signalfd}, 2, -1)
    mov rdi, rbx
    mov esi, 2
    mov rdx, -1
    syscall
    test word ptr [rbx + 14], 1 // told (signalfd readable)? Otherwise the engine is dead: end, and the namespace too
    jz 2f
    mov eax, 436                // close_range(0, ~0): nothing of the engine's stays
    xor edi, edi
    mov esi, -1
    xor edx, edx
    syscall
    mov eax, 434                // pidfd_open(pid, 0)
    mov rdi, r13
    xor esi, esi
    syscall
    test rax, rax
    js 1f                       // it has ended already
    mov [rbx], eax
    mov word ptr [rbx + 4], 1
    mov eax, 7                  // poll({pidfd}, 1, -1)
    mov rdi, rbx
    mov esi, 1
    mov rdx, -1
    syscall
1:  mov eax, 61                 // wait4(-1, 0, __WALL, 0) until there is no child left
    mov rdi, -1
    xor esi, esi
    mov edx, 0x40000000
    xor r10d, r10d
    syscall
    test rax, rax
    jns 1b
2:  mov eax, 231                // exit_group(0)
    xor edi, edi
    syscall
    ud2
godwit_init_stub_end:

    .section .note.GNU-stack, "", @progbits
