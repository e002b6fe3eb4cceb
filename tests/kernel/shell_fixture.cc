// The program of the rebuilt processes, and main(): every test runs as pid 1 of a pid namespace of its own,
// so that pids can be chosen freely and orphans come to the test.
#include "tests/kernel/shell_fixture.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>

#include <csignal>

// What the rebuilt processes run: position independent, one page.
//   report: writes what the registers hold to rdi and ends this thread
//   after_read: the instruction behind a read(2): reports its result
asm(R"(
    .pushsection .rodata
    .intel_syntax noprefix
    .global test_code, test_report, test_after_read, test_fork, test_end
test_code:
    syscall
    ud2
test_report:                    # rdi fd, rsi a place for 40 bytes
    mov [rsi], r12
    mov [rsi + 8], r15
    movdqu [rsi + 16], xmm0
    mov [rsi + 32], rbp
    mov edx, 40
    mov eax, 1
    syscall
    mov edi, 3
    mov eax, 60
    syscall
    ud2
    syscall                     # the read
test_after_read:                # r12 fd, r13 a place for 8 bytes
    mov [r13], rax
    mov edi, r12d
    mov rsi, r13
    mov edx, 8
    mov eax, 1
    syscall
    mov edi, 3
    mov eax, 231
    syscall
    ud2
test_fork:                      # r12 fd: the child waits for its end
    mov eax, 57
    syscall
    test eax, eax
    jnz 1f
    mov edi, r12d
    lea rsi, [rsp]
    mov edx, 1
    xor eax, eax
    syscall
    xor edi, edi
    jmp 2f
1:  mov edi, 3
2:  mov eax, 231
    syscall
    ud2
test_end:
    .att_syntax
    .popsection
)");
namespace {

/// The tests, as pid 1 with a /proc of its own.
int run_inside(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("proc", "/proc", "proc", 0, nullptr) != 0) {
    fmt::print("skipped: cannot mount /proc: {}\n", strerror(errno));
    return 77;
  }
  testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace

int main(int argc, char** argv) {
  if (::unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) {
    fmt::print("skipped: no pid namespace of its own: {}\n", strerror(errno));
    return 77;
  }
  const pid_t inside = ::fork();
  if (inside == 0) {
    const int code = run_inside(argc, argv);
    std::fflush(nullptr);
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(inside, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
