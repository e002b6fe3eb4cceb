// What every test program shares: prepare a kind of state, say ready, be moved, look whether all is still
// there.
//
// A program gets a directory and, after it, the names of the cases to run (none: all of them). It prepares
// each case and writes DIR/ready; whenever DIR/check.N appears (N = 1, 2, ...) it checks every case and
// writes DIR/result.N: PASS, or one line `FAIL: case: reason` for each that failed. DIR/quit ends it. Files,
// because a pipe to a process that stays behind cannot move. A check leaves its case prepared for the next
// move.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  const char* name;
  void (*prepare)(void);
  const char* (*check)(int round);  // NULL when all is well, else fail(...)
  bool alone;                       // changes the process for good: runs only when named
} Case;

static const char* program_dir = ".";

/// A reason for a failure. Valid until the next call on this thread.
__attribute__((format(printf, 1, 2), unused)) static const char* fail(const char* format, ...) {
  static __thread char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return text;
}

/// The same, behind what was expected.
__attribute__((format(printf, 2, 3), unused)) static const char* unlike(const char* what, const char* format,
                                                                        ...) {
  char detail[400];
  va_list args;
  va_start(args, format);
  vsnprintf(detail, sizeof detail, format, args);
  va_end(args);
  return fail("%s: %s", what, detail);
}

/// DIR/name. Valid until the next call on this thread.
__attribute__((unused)) static const char* program_path(const char* name) {
  static __thread char path[4096];
  snprintf(path, sizeof path, "%s/%s", program_dir, name);
  return path;
}

/// Write DIR/name in one step: whoever sees it sees all of it.
static void program_write(const char* name, const char* text) {
  char temporary[4096], final[4096];
  snprintf(temporary, sizeof temporary, "%s/.%s.tmp", program_dir, name);
  snprintf(final, sizeof final, "%s/%s", program_dir, name);
  int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) ||
      rename(temporary, final)) {
    fprintf(stderr, "cannot write %s: %s\n", final, strerror(errno));
    exit(3);
  }
}

/// Preparation that fails is a fault of the test or of the machine, not of the move.
#define MUST(what)                                                                                   \
  do {                                                                                               \
    if (!(what)) {                                                                                   \
      const char* text_ = fail("ERROR %s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno)); \
      program_write("ready", text_);                                                                 \
      fputs(text_, stderr);                                                                          \
      exit(3);                                                                                       \
    }                                                                                                \
  } while (0)

/// In a check: return the reason unless `what` holds.
#define EXPECT(what, ...)                           \
  do {                                              \
    if (!(what)) return unlike(#what, __VA_ARGS__); \
  } while (0)

__attribute__((unused)) static uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

/// Fill whole words with a pattern of `seed` and their offset.
__attribute__((unused)) static void fill(void* at, size_t bytes, uint64_t seed) {
  uint64_t* words = at;
  for (size_t i = 0; i < bytes / 8; i++) words[i] = mix(seed * 0x9e3779b97f4a7c15ULL + i);
}

/// The offset of the first byte that differs from fill(seed), or -1.
__attribute__((unused)) static long differs(const void* at, size_t bytes, uint64_t seed) {
  const uint64_t* words = at;
  for (size_t i = 0; i < bytes / 8; i++)
    if (words[i] != mix(seed * 0x9e3779b97f4a7c15ULL + i)) return (long)(i * 8);
  return -1;
}

__attribute__((unused)) static long all_zero(const void* at, size_t bytes) {
  const uint64_t* words = at;
  for (size_t i = 0; i < bytes / 8; i++)
    if (words[i]) return (long)(i * 8);
  return -1;
}

__attribute__((unused)) static int64_t now_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

__attribute__((unused)) static void pause_ms(int ms) {
  struct timespec rest = {ms / 1000, ms % 1000 * 1000000L};
  while (nanosleep(&rest, &rest) && errno == EINTR) {
  }
}

/// All of a small file as text. Valid until the next call on this thread.
__attribute__((unused)) static const char* slurp(const char* path) {
  static __thread char text[1 << 16];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  size_t have = 0;
  for (ssize_t got; have < sizeof text - 1 && (got = read(fd, text + have, sizeof text - 1 - have)) > 0;)
    have += (size_t)got;
  close(fd);
  text[have] = 0;
  return text;
}

static bool case_chosen(const Case* one, int argc, char** argv) {
  for (int i = 2; i < argc; i++)
    if (!strcmp(argv[i], one->name)) return true;
  return argc == 2 && !one->alone;
}

static void program_check(const Case* cases, int argc, char** argv, int round) {
  static char results[1 << 14];
  size_t used = 0;
  for (const Case* one = cases; one->name; one++) {
    if (!case_chosen(one, argc, argv)) continue;
    const char* reason = one->check(round);
    if (reason && used < sizeof results - 1024)
      used += (size_t)snprintf(results + used, sizeof results - used, "FAIL: %s: %s\n", one->name, reason);
  }
  if (!used) strcpy(results, "PASS\n");
  char name[32];
  snprintf(name, sizeof name, "result.%d", round);
  program_write(name, results);
}

static bool program_file(const char* name) {
  struct stat found;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", program_dir, name);
  return stat(path, &found) == 0;
}

/// The whole life of a program. `ready_after_ms`: how long to run before saying ready.
__attribute__((unused)) static int program_main_after(int argc, char** argv, const Case* cases,
                                                      int ready_after_ms) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s DIR [CASE...]\ncases:", argv[0]);
    for (const Case* one = cases; one->name; one++)
      fprintf(stderr, " %s%s", one->name, one->alone ? "!" : "");
    fprintf(stderr, "\n");
    return 2;
  }
  program_dir = argv[1];
  int chosen = 0;
  for (const Case* one = cases; one->name; one++)
    if (case_chosen(one, argc, argv)) {
      one->prepare();
      chosen++;
    }
  MUST(chosen >= (argc == 2 ? 1 : argc - 2));
  pause_ms(ready_after_ms);
  char name[32];
  snprintf(name, sizeof name, "%d\n", getpid());
  program_write("ready", name);
  for (int round = 1;; round++) {
    snprintf(name, sizeof name, "check.%d", round);
    while (!program_file(name)) {
      if (program_file("quit")) return 0;
      pause_ms(1);
    }
    program_check(cases, argc, argv, round);
  }
}

__attribute__((unused)) static int program_main(int argc, char** argv, const Case* cases) {
  return program_main_after(argc, argv, cases, 0);
}
