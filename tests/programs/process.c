// What a process is beside memory and threads: where it stands, what it may, what the kernel says of it in
// /proc.
#include "program.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

// ---- where it stands
static char cwd_want[4096];
static void cwd_prepare(void) {
  MUST(!mkdir(program_path("sub directory"), 0755) || errno == EEXIST);
  MUST(!chdir(program_path("sub directory")));
  MUST(getcwd(cwd_want, sizeof cwd_want));
  umask(0137);
}
static const char* cwd_check(int round) {
  (void)round;
  char have[4096];
  EXPECT(getcwd(have, sizeof have) && !strcmp(have, cwd_want), "in %s", have);
  mode_t mask = umask(0137);
  EXPECT(mask == 0137, "umask %o", mask);
  return NULL;
}

// ---- limits
static struct rlimit limits_want[RLIM_NLIMITS];
static void limits_prepare(void) {
  static const int lowered[] = {RLIMIT_CORE,   RLIMIT_FSIZE,    RLIMIT_STACK,
                                RLIMIT_NOFILE, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING};
  for (int i = 0; i < RLIM_NLIMITS; i++) MUST(!getrlimit((__rlimit_resource_t)i, &limits_want[i]));
  for (size_t i = 0; i < sizeof lowered / sizeof *lowered; i++) {
    struct rlimit* limit = &limits_want[lowered[i]];
    rlim_t most = limit->rlim_max < 1UL << 33 ? limit->rlim_max : 1UL << 33;
    limit->rlim_cur = most / 2;
    limit->rlim_max = most;
    MUST(!setrlimit((__rlimit_resource_t)lowered[i], limit));
  }
}
static const char* limits_check(int round) {
  (void)round;
  for (int i = 0; i < RLIM_NLIMITS; i++) {
    struct rlimit have;
    getrlimit((__rlimit_resource_t)i, &have);
    EXPECT(have.rlim_cur == limits_want[i].rlim_cur && have.rlim_max == limits_want[i].rlim_max,
           "limit %d: %lu %lu", i, have.rlim_cur, have.rlim_max);
  }
  return NULL;
}

// ---- who it is, by the kernel's own words: ids, groups, capabilities, no_new_privs, seccomp
static char status_want[2048];
static void status(char* out, size_t size) {
  static const char* const kept[] = {
      "Name:",    "Umask:",   "Tgid:",        "Uid:",         "Gid:",         "Groups:",
      "NStgid:",  "NSpgid:",  "NSsid:",       "SigBlk:",      "SigIgn:",      "SigCgt:",
      "CapInh:",  "CapPrm:",  "CapEff:",      "CapBnd:",      "CapAmb:",      "NoNewPrivs:",
      "Seccomp:", "Threads:", "CoreDumping:", "THP_enabled:", "Cpus_allowed:"};
  FILE* file = fopen("/proc/self/status", "re");
  char line[1024];
  size_t used = 0;
  out[0] = 0;
  while (file && fgets(line, sizeof line, file))
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
      if (!strncmp(line, kept[i], strlen(kept[i])) && used < size - 256)
        used += (size_t)snprintf(out + used, size - used, "%.200s", line);
  if (file) fclose(file);
}
static const char* status_check(int round) {
  (void)round;
  char have[2048];
  status(have, sizeof have);
  const char *a = status_want, *b = have;
  while (*a && *b) {
    size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");
    EXPECT(n == m && !memcmp(a, b, n), "was '%.*s', is '%.*s'", (int)n, a, (int)m, b);
    a += n + 1;
    b += m + 1;
  }
  return NULL;
}
static void status_prepare(void) {
  status(status_want, sizeof status_want);
}

static void capset_now(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {
      {(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
      {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
  MUST(!syscall(SYS_capset, &header, data));
}

// As root with some capabilities gone from each set, some inheritable and ambient, securebits set.
static void capabilities_prepare(void) {
  MUST(!prctl(PR_CAPBSET_DROP, CAP_SYS_TIME) && !prctl(PR_CAPBSET_DROP, CAP_WAKE_ALARM));
  MUST(!prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS));
  uint64_t kept =
      (1ULL << CAP_NET_ADMIN) | (1ULL << CAP_CHOWN) | (1ULL << CAP_DAC_OVERRIDE) | (1ULL << CAP_KILL);
  capset_now((1ULL << CAP_CHOWN) | (1ULL << CAP_DAC_OVERRIDE), kept, 1ULL << CAP_NET_ADMIN);
  MUST(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0));
  status_prepare();
}
static const char* capabilities_check(int round) {
  int bits = prctl(PR_GET_SECUREBITS);
  EXPECT(bits == (SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS), "securebits %x", bits);
  return status_check(round);
}

// As nobody, with groups, every privilege given up.
static void nobody_prepare(void) {
  gid_t groups[] = {100, 1001, 4242};
  MUST(!setgroups(3, groups));
  MUST(!setresgid(65534, 100, 65534) && !setresuid(65534, 65534, 65534));
  MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  status_prepare();
}
static const char* nobody_check(int round) {
  gid_t r, e, s, groups[8];
  getresgid(&r, &e, &s);
  EXPECT(r == 65534 && e == 100 && s == 65534, "gids %u %u %u", r, e, s);
  int count = getgroups(8, groups);
  EXPECT(count == 3 && groups[0] == 100 && groups[1] == 1001 && groups[2] == 4242, "%d groups", count);
  EXPECT(setuid(0) == -1, "may become root");
  return status_check(round);
}

// ---- prctl and its like
static void prctl_prepare(void) {
  MUST(!prctl(PR_SET_NAME, "a name (odd) )"));
  MUST(!prctl(PR_SET_DUMPABLE, 0) || true);
  MUST(!prctl(PR_SET_DUMPABLE, 1));
  MUST(!prctl(PR_SET_CHILD_SUBREAPER, 1));
  MUST(!prctl(PR_SET_TIMERSLACK, 123456));
  MUST(!prctl(PR_SET_KEEPCAPS, 1));
  MUST(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
  MUST(personality(ADDR_NO_RANDOMIZE) != -1);
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  MUST(fd >= 0 && write(fd, "321", 3) == 3 && !close(fd));
  MUST(!setpriority(PRIO_PROCESS, 0, 3));
  MUST(!syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 6));
}
static const char* prctl_check(int round) {
  (void)round;
  char name[17] = "";
  int number = 0;
  prctl(PR_GET_NAME, name);
  EXPECT(!strcmp(name, "a name (odd) )"), "name %s", name);
  EXPECT(prctl(PR_GET_DUMPABLE) == 1, "dumpable %d", prctl(PR_GET_DUMPABLE));
  prctl(PR_GET_CHILD_SUBREAPER, &number);
  EXPECT(number == 1, "subreaper %d", number);
  EXPECT(prctl(PR_GET_TIMERSLACK) == 123456, "slack %d", prctl(PR_GET_TIMERSLACK));
  EXPECT(prctl(PR_GET_KEEPCAPS) == 1, "keepcaps %d", prctl(PR_GET_KEEPCAPS));
  EXPECT(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "THP disable %d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
  EXPECT(personality(0xffffffff) == ADDR_NO_RANDOMIZE, "personality %x", personality(0xffffffff));
  EXPECT(atoi(slurp("/proc/self/oom_score_adj")) == 321, "oom_score_adj %s",
         slurp("/proc/self/oom_score_adj"));
  EXPECT(getpriority(PRIO_PROCESS, 0) == 3, "nice %d", getpriority(PRIO_PROCESS, 0));
  EXPECT(syscall(SYS_ioprio_get, 1, 0) == ((2 << 13) | 6), "ioprio %lx", syscall(SYS_ioprio_get, 1, 0));
  return NULL;
}

// A process that is not dumpable stays so.
static void undumpable_prepare(void) {
  MUST(!prctl(PR_SET_DUMPABLE, 0));
}
static const char* undumpable_check(int round) {
  (void)round;
  EXPECT(prctl(PR_GET_DUMPABLE) == 0, "dumpable %d", prctl(PR_GET_DUMPABLE));
  return NULL;
}

// ---- what /proc says: command line, environment, auxiliary vector, executable, the marks of the address
// space
typedef struct {
  char cmdline[4096], environ[8192], auxv[1024], exe[4096];
  int pid, sid, pgid;
  unsigned long stat[60];
  int stats;
} Proc;
static Proc proc_want;
static void read_bytes(const char* path, char* out, size_t size) {
  memset(out, 0, size);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0 && read(fd, out, size - 1) >= 0 && !close(fd));
}
static void proc_read(Proc* out) {
  memset(out, 0, sizeof *out);
  read_bytes("/proc/self/cmdline", out->cmdline, sizeof out->cmdline);
  read_bytes("/proc/self/environ", out->environ, sizeof out->environ);
  read_bytes("/proc/self/auxv", out->auxv, sizeof out->auxv);
  MUST(readlink("/proc/self/exe", out->exe, sizeof out->exe - 1) > 0);
  out->pid = getpid();
  out->sid = getsid(0);
  out->pgid = getpgid(0);
  const char* rest = strrchr(slurp("/proc/self/stat"), ')');
  rest += 4;  // after the state letter: field 4 and on
  for (out->stats = 4; *rest && out->stats < 60; out->stats++)
    out->stat[out->stats] = strtoul(rest, (char**)&rest, 10);
}
static void proc_prepare(void) {
  proc_read(&proc_want);
}
static const char* proc_check(int round) {
  (void)round;
  static Proc have;
  proc_read(&have);
  EXPECT(!memcmp(have.cmdline, proc_want.cmdline, sizeof have.cmdline), "%s", have.cmdline);
  EXPECT(!memcmp(have.environ, proc_want.environ, sizeof have.environ), "%s", have.environ);
  EXPECT(!memcmp(have.auxv, proc_want.auxv, sizeof have.auxv), "auxv differs");
  EXPECT(!strcmp(have.exe, proc_want.exe), "%s", have.exe);
  EXPECT(have.pid == proc_want.pid && have.sid == proc_want.sid && have.pgid == proc_want.pgid,
         "pid %d session %d group %d, was %d %d %d", have.pid, have.sid, have.pgid, proc_want.pid,
         proc_want.sid, proc_want.pgid);
  // proc(5): 26 startcode, 27 endcode, 28 startstack, 45 start_data ... 51 env_end
  static const int marks[] = {26, 27, 28, 45, 46, 47, 48, 49, 50, 51};
  for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
    EXPECT(have.stat[marks[i]] == proc_want.stat[marks[i]], "field %d: %lx, was %lx", marks[i],
           have.stat[marks[i]], proc_want.stat[marks[i]]);
  char vdso[256] = "";
  snprintf(vdso, sizeof vdso, "%lx-", getauxval(AT_SYSINFO_EHDR));
  EXPECT(strstr(slurp("/proc/self/maps"), vdso), "no mapping at AT_SYSINFO_EHDR %s", vdso);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"cwd", cwd_prepare, cwd_check, false},
                               {"limits", limits_prepare, limits_check, false},
                               {"prctl", prctl_prepare, prctl_check, false},
                               {"proc", proc_prepare, proc_check, false},
                               {"status", status_prepare, status_check, false},
                               {"capabilities", capabilities_prepare, capabilities_check, true},
                               {"nobody", nobody_prepare, nobody_check, true},
                               {"undumpable", undumpable_prepare, undumpable_check, true},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
