// Memory of every kind: contents, protection, flags, holes and what two mappings share.
#include "program.h"

#include <linux/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>

enum { kPage = 4096 };
static const size_t kMiB = 1 << 20;

static char* map(size_t bytes, int prot, int flags, int fd, off_t offset) {
  char* at = mmap(NULL, bytes, prot, flags, fd, offset);
  MUST(at != MAP_FAILED);
  return at;
}

static char* anonymous(size_t bytes) {
  return map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int new_file(const char* name, size_t bytes, uint64_t seed) {
  int fd = open(program_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  MUST(fd >= 0);
  char* text = malloc(bytes);
  fill(text, bytes, seed);
  MUST(write(fd, text, bytes) == (ssize_t)bytes);
  free(text);
  return fd;
}

// ---- plain anonymous memory, rewritten after each check
static char* anon;
static uint64_t anon_seed = 1;
static void anon_prepare(void) {
  anon = anonymous(8 * kMiB);
  fill(anon, 8 * kMiB, anon_seed);
}
static const char* anon_check(int round) {
  long at = differs(anon, 8 * kMiB, anon_seed);
  EXPECT(at < 0, "differs at %#lx", at);
  anon_seed = (uint64_t)round + 1;
  fill(anon, 8 * kMiB, anon_seed);
  return NULL;
}

// ---- a gigabyte of which a page in a thousand was touched, some only read, some discarded
static char* sparse;
static const size_t kSparse = 1UL << 30;
static void sparse_prepare(void) {
  sparse = map(kSparse, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (size_t page = 0; page < kSparse / kPage; page += 1000) fill(sparse + page * kPage, kPage, page);
  for (size_t page = 500; page < kSparse / kPage; page += 10000)
    MUST(((volatile char*)sparse)[page * kPage] == 0);
  for (size_t page = 0; page < kSparse / kPage; page += 7000)
    madvise(sparse + page * kPage, kPage, MADV_DONTNEED);
}
static const char* sparse_check(int round) {
  (void)round;
  for (size_t page = 0; page < kSparse / kPage; page += 500) {
    bool kept = page % 1000 == 0 && page % 7000 != 0;
    long at = kept ? differs(sparse + page * kPage, kPage, page) : all_zero(sparse + page * kPage, kPage);
    EXPECT(at < 0, "page %zu differs at %#lx", page, at);
  }
  return NULL;
}

// ---- protections: content behind PROT_NONE and read-only pages, holes between
static char* patchwork;
static const int kProts[] = {PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE | PROT_EXEC,
                             PROT_READ | PROT_EXEC};
static void protections_prepare(void) {
  patchwork = anonymous(60 * kPage);
  fill(patchwork, 60 * kPage, 5);
  for (int i = 0; i < 60; i++) {
    if (i % 6 == 5)
      MUST(!munmap(patchwork + i * kPage, kPage));
    else
      MUST(!mprotect(patchwork + i * kPage, kPage, kProts[i % 6]));
  }
}
static int prot_of(const char* at) {
  FILE* maps = fopen("/proc/self/maps", "re");
  unsigned long start, end;
  char perms[5], line[512];
  int found = -1;
  while (found < 0 && fgets(line, sizeof line, maps))
    if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) == 3 && start <= (uintptr_t)at &&
        (uintptr_t)at < end)
      found = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
              (perms[2] == 'x' ? PROT_EXEC : 0);
  fclose(maps);
  return found;
}
static const char* protections_check(int round) {
  (void)round;
  static char whole[60 * kPage];
  fill(whole, sizeof whole, 5);
  for (int i = 0; i < 60; i++) {
    char* page = patchwork + i * kPage;
    int want = i % 6 == 5 ? -1 : kProts[i % 6];
    EXPECT(prot_of(page) == want, "page %d: has %d, want %d", i, prot_of(page), want);
    if (want < 0) continue;
    MUST(!mprotect(page, kPage, PROT_READ));
    bool same = !memcmp(page, whole + i * kPage, kPage);
    MUST(!mprotect(page, kPage, want));
    EXPECT(same, "page %d", i);
  }
  return NULL;
}

// ---- a file mapped privately and modified here and there; the file itself must stay as it was
static char* private_file;
static void private_file_prepare(void) {
  int fd = new_file("private.dat", kMiB, 7);
  private_file = map(kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  for (size_t page = 0; page < kMiB / kPage; page += 3) fill(private_file + page * kPage, kPage, 1000 + page);
  close(fd);
}
static const char* private_file_check(int round) {
  (void)round;
  char* wanted = malloc(kMiB);
  fill(wanted, kMiB, 7);
  int fd = open(program_path("private.dat"), O_RDONLY | O_CLOEXEC);
  char* file = map(kMiB, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  bool file_same = !memcmp(file, wanted, kMiB);
  munmap(file, kMiB);
  for (size_t page = 0; page < kMiB / kPage; page += 3) fill(wanted + page * kPage, kPage, 1000 + page);
  bool mapping_same = !memcmp(private_file, wanted, kMiB);
  free(wanted);
  EXPECT(file_same, "the private mapping reached the file");
  EXPECT(mapping_same, "the private mapping lost its changes");
  return NULL;
}

// ---- a file mapped shared: what is stored shows in the file, before and after
static char* shared_file;
static int shared_file_fd;
static uint64_t shared_file_seed = 9;
static void shared_file_prepare(void) {
  shared_file_fd = new_file("shared.dat", kMiB, 8);
  shared_file = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, shared_file_fd, 0);
  fill(shared_file, kMiB, shared_file_seed);
}
static const char* shared_file_check(int round) {
  EXPECT(differs(shared_file, kMiB, shared_file_seed) < 0, "the mapping differs");
  shared_file_seed = 100 + (uint64_t)round;
  fill(shared_file, kMiB, shared_file_seed);
  char* text = malloc(kMiB);
  bool same =
      pread(shared_file_fd, text, kMiB, 0) == (ssize_t)kMiB && differs(text, kMiB, shared_file_seed) < 0;
  free(text);
  EXPECT(same, "a store does not show in the file");
  return NULL;
}

// ---- a file that is open for reading only, mapped shared: none of it can or need be written on the other
// side
static char* readonly_file;
static void readonly_file_prepare(void) {
  close(new_file("readonly.dat", kMiB, 10));
  int fd = open(program_path("readonly.dat"), O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0);
  readonly_file = map(kMiB, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  MUST(differs(readonly_file, kMiB, 10) < 0);
}
static const char* readonly_file_check(int round) {
  (void)round;
  EXPECT(differs(readonly_file, kMiB, 10) < 0, "content");
  EXPECT(mprotect(readonly_file, kMiB, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "it may be written");
  return NULL;
}

// ---- shared anonymous memory seen through two mappings
static char *twin_a, *twin_b;
static void twins_prepare(void) {
  twin_a = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  twin_b = mremap(twin_a, 0, kMiB, MREMAP_MAYMOVE);
  MUST(twin_b != MAP_FAILED);
  fill(twin_a, kMiB, 11);
}
static const char* twins_check(int round) {
  uint64_t seed = round == 1 ? 11 : 200 + (uint64_t)round - 1;
  EXPECT(differs(twin_a, kMiB, seed) < 0, "the first mapping differs");
  EXPECT(differs(twin_b, kMiB, seed) < 0, "the second mapping differs");
  fill(twin_b, kMiB, 200 + (uint64_t)round);
  EXPECT(differs(twin_a, kMiB, 200 + (uint64_t)round) < 0, "the two are no longer one memory");
  return NULL;
}

// ---- memfds: mapped shared, mapped privately over it, and a part no mapping shows
static int memfd;
static char *memfd_shared, *memfd_private;
static void memfd_prepare(void) {
  memfd = memfd_create("godwit-memory", MFD_CLOEXEC);
  MUST(memfd >= 0 && !ftruncate(memfd, 4 * (off_t)kMiB));
  memfd_shared = map(kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
  memfd_private = map(kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
  fill(memfd_shared, kMiB, 13);
  fill(memfd_private, kMiB / 2, 14);
  char* hidden = malloc(kMiB);
  fill(hidden, kMiB, 15);
  MUST(pwrite(memfd, hidden, kMiB, 2 * (off_t)kMiB) == (ssize_t)kMiB);
  free(hidden);
}
static const char* memfd_check(int round) {
  (void)round;
  struct stat found;
  EXPECT(!fstat(memfd, &found) && found.st_size == 4 * (off_t)kMiB, "size %ld", (long)found.st_size);
  EXPECT(differs(memfd_shared, kMiB, 13) < 0, "the shared mapping differs");
  EXPECT(differs(memfd_private, kMiB / 2, 14) < 0, "the private mapping lost its changes");
  EXPECT(!memcmp(memfd_private + kMiB / 2, memfd_shared + kMiB / 2, kMiB / 2),
         "the untouched half shows something else");
  char* hidden = malloc(kMiB);
  bool same = pread(memfd, hidden, kMiB, 2 * (off_t)kMiB) == (ssize_t)kMiB && differs(hidden, kMiB, 15) < 0;
  bool hole = pread(memfd, hidden, kMiB, 3 * (off_t)kMiB) == (ssize_t)kMiB && all_zero(hidden, kMiB) < 0;
  uint64_t word = 0x1122334455667788;
  bool shows = pwrite(memfd, &word, 8, 8) == 8 && *(uint64_t*)(memfd_shared + 8) == word;
  fill(memfd_shared, kPage, 13);
  free(hidden);
  EXPECT(same, "the part that no mapping shows");
  EXPECT(hole, "the hole");
  EXPECT(shows, "a write by fd does not show in the mapping");
  return NULL;
}

// ---- the heap by brk, growing on
static char* heap;
static size_t heap_bytes;
static void brk_prepare(void) {
  heap_bytes = kMiB;
  heap = sbrk((intptr_t)heap_bytes);
  MUST(heap != (void*)-1);
  fill(heap, heap_bytes, 17);
}
static const char* brk_check(int round) {
  (void)round;
  EXPECT(differs(heap, heap_bytes, 17) < 0, "the heap differs");
  void* before = sbrk(0);
  void* more = sbrk(4 * kPage);
  EXPECT(more == before, "brk is elsewhere: %p, not %p", more, before);
  EXPECT(all_zero(more, 4 * kPage) < 0, "new heap is not zero");
  EXPECT(sbrk(-4 * kPage) != (void*)-1, "brk cannot shrink");
  return NULL;
}

// ---- stacks grow: the first thread's own, and a MAP_GROWSDOWN mapping
static char* grows;
static __attribute__((noinline)) int deep(int levels) {
  volatile char frame[2 * kPage];
  frame[0] = (char)levels;
  frame[sizeof frame - 1] = 1;
  return levels ? deep(levels - 1) + frame[sizeof frame - 1] : 0;
}
static void stack_prepare(void) {
  // KERNEL: a stack grows only while no accessible mapping is nearer than 256 pages below it.
  char* room = map(464 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(!munmap(room + 400 * kPage, 64 * kPage));
  grows = mmap(room + 460 * kPage, 4 * kPage, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
  MUST(grows != MAP_FAILED);
  fill(grows, 4 * kPage, 19);
}
static const char* stack_check(int round) {
  EXPECT(deep(200 + round * 20 % 200) == 200 + round * 20 % 200, "recursion");
  EXPECT(differs(grows, 4 * kPage, 19) < 0, "the growing mapping differs");
  if (round <= 6) {
    char* below = grows - round * kPage;
    *(volatile char*)below = 1;  // dies here when the mapping no longer grows
    EXPECT(*(volatile char*)below == 1, "grown page");
  }
  return NULL;
}

// ---- flags: the kernel's own words for each mapping, before and after
enum { kFlagged = 9 };
static char* flagged[kFlagged];
static char flags_before[kFlagged][256];
static void vm_flags(const char* at, char* out, size_t size) {
  FILE* smaps = fopen("/proc/self/smaps", "re");
  char line[512];
  unsigned long start, end;
  bool inside = false;
  out[0] = 0;
  while (fgets(line, sizeof line, smaps)) {
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < line + 20)
      inside = start <= (uintptr_t)at && (uintptr_t)at < end;
    if (inside && !strncmp(line, "VmFlags:", 8)) snprintf(out, size, "%s", line + 8);
  }
  fclose(smaps);
}
static void flags_prepare(void) {
  static const int advice[kFlagged] = {MADV_DONTFORK,
                                       MADV_DONTDUMP,
                                       MADV_HUGEPAGE,
                                       MADV_NOHUGEPAGE,
                                       MADV_SEQUENTIAL,
                                       MADV_RANDOM,
                                       MADV_WIPEONFORK,
                                       -1,
                                       -1};
  for (int i = 0; i < kFlagged; i++) {
    int more = i == 8 ? MAP_NORESERVE : 0;
    char* room = map(4 * kMiB + 8 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | more, -1, 0);
    flagged[i] = room + 4 * kPage;
    size_t bytes = i == 2 ? 4 * kMiB : 4 * kPage;
    MUST(!mprotect(flagged[i], bytes, PROT_READ | PROT_WRITE));
    if (advice[i] >= 0) MUST(!madvise(flagged[i], bytes, advice[i]));
    if (i == 7) MUST(!mlock(flagged[i], bytes));
    fill(flagged[i], bytes, (uint64_t)i + 21);
  }
  for (int i = 0; i < kFlagged; i++) vm_flags(flagged[i], flags_before[i], sizeof flags_before[i]);
}
static const char* flags_check(int round) {
  (void)round;
  for (int i = 0; i < kFlagged; i++) {
    char after[256];
    vm_flags(flagged[i], after, sizeof after);
    EXPECT(!strcmp(after, flags_before[i]), "mapping %d: had%s has%s", i, flags_before[i], after);
    EXPECT(differs(flagged[i], i == 2 ? 4 * kMiB : 4 * kPage, (uint64_t)i + 21) < 0, "mapping %d differs", i);
  }
  return NULL;
}

// ---- guard regions (MADV_GUARD_INSTALL) inside a mapping
static char* guarded;
static void guard_prepare(void) {
  guarded = anonymous(16 * kPage);
  fill(guarded, 16 * kPage, 23);
  MUST(!madvise(guarded + 4 * kPage, 2 * kPage, 102));
}
static const char* guard_check(int round) {
  (void)round;
  char copy[kPage];
  for (int i = 0; i < 16; i++) {
    struct iovec to = {copy, kPage}, from = {guarded + i * kPage, kPage};
    bool readable = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == kPage;
    bool guard = i == 4 || i == 5;
    EXPECT(readable != guard, "page %d", i);
  }
  EXPECT(differs(guarded, 4 * kPage, 23) < 0, "content below the guard");
  return NULL;
}

// ---- a sealed mapping
static char* sealed;
static void seal_prepare(void) {
  sealed = anonymous(4 * kPage);
  fill(sealed, 4 * kPage, 25);
  MUST(!syscall(462, sealed, 4 * kPage, 0));
}
static const char* seal_check(int round) {
  (void)round;
  EXPECT(munmap(sealed, 4 * kPage) == -1 && errno == EPERM, "the seal is broken");
  EXPECT(differs(sealed, 4 * kPage, 25) < 0, "content");
  return NULL;
}

// ---- a transparent huge page, aligned
static char* huge;
static void huge_prepare(void) {
  char* room = anonymous(6 * kMiB);
  huge = (char*)(((uintptr_t)room + 2 * kMiB - 1) & ~(uintptr_t)(2 * kMiB - 1));
  MUST(!madvise(huge, 4 * kMiB, MADV_HUGEPAGE));
  fill(huge, 4 * kMiB, 27);
}
static const char* huge_check(int round) {
  uint64_t seed = 27 + (uint64_t)round - 1;
  EXPECT(differs(huge, 4 * kMiB, seed) < 0, "content");
  fill(huge, 4 * kMiB, seed + 1);
  return NULL;
}

// ---- all mappings as a whole: places, protections, offsets and names, neighbours of one kind taken together
typedef struct {
  unsigned long start, end, offset;
  char perms[5], name[200];
} Line;
typedef struct {
  int count;
  Line line[512];
} Layout;
static Layout layout_before, layout_after;
static void layout(Layout* out) {
  FILE* maps = fopen("/proc/self/maps", "re");
  char text[1024];
  out->count = 0;
  while (fgets(text, sizeof text, maps) && out->count < 512) {
    Line* one = &out->line[out->count];
    int used = 0;
    sscanf(text, "%lx-%lx %4s %lx %*s %*s %n", &one->start, &one->end, one->perms, &one->offset, &used);
    snprintf(one->name, sizeof one->name, "%.*s", (int)strcspn(text + used, "\n"), text + used);
    Line* last = one - 1;
    bool file = one->name[0] == '/';
    if (out->count && last->end == one->start && !strcmp(last->perms, one->perms) &&
        !strcmp(last->name, one->name) && (!file || last->offset + (last->end - last->start) == one->offset))
      last->end = one->end;
    else
      out->count++;
  }
  fclose(maps);
}
static void layout_prepare(void) {
  layout(&layout_before);
  layout(&layout_before);
}
static const char* layout_check(int round) {
  (void)round;
  layout(&layout_after);
  for (int i = 0; i < layout_before.count && i < layout_after.count; i++) {
    const Line *a = &layout_before.line[i], *b = &layout_after.line[i];
    bool grown = !strcmp(a->name, "[stack]") && a->end == b->end && b->start <= a->start;
    EXPECT((grown || a->start == b->start) && a->end == b->end && !strcmp(a->perms, b->perms) &&
               !strcmp(a->name, b->name) && (a->name[0] != '/' || a->offset == b->offset),
           "was %lx-%lx %s %s, is %lx-%lx %s %s", a->start, a->end, a->perms, a->name, b->start, b->end,
           b->perms, b->name);
  }
  EXPECT(layout_before.count == layout_after.count, "%d mappings, then %d", layout_before.count,
         layout_after.count);
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"anon", anon_prepare, anon_check, false},
                               {"sparse", sparse_prepare, sparse_check, false},
                               {"protections", protections_prepare, protections_check, false},
                               {"private_file", private_file_prepare, private_file_check, false},
                               {"shared_file", shared_file_prepare, shared_file_check, false},
                               {"readonly_file", readonly_file_prepare, readonly_file_check, false},
                               {"twins", twins_prepare, twins_check, false},
                               {"memfd", memfd_prepare, memfd_check, false},
                               {"brk", brk_prepare, brk_check, false},
                               {"stack", stack_prepare, stack_check, false},
                               {"flags", flags_prepare, flags_check, false},
                               {"guard", guard_prepare, guard_check, false},
                               {"seal", seal_prepare, seal_check, false},
                               {"huge", huge_prepare, huge_check, false},
                               {"layout", layout_prepare, layout_check, true},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
