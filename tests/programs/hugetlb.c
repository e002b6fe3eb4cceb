// Memory of hugetlbfs, of every kind that moves: contents, protection, holes, what was discarded; and stores
// to all of it while it moves. The host must have huge pages of 2 MiB reserved (24 for all cases).
#include "program.h"

#include <linux/falloc.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <pthread.h>

enum { kPage = 4096, kHuge = 2 << 20, kAreas = 8 };

/// An area that is stored to all the time, a word here and there, beside a shadow of it.
typedef struct {
  char *at, *shadow;
  size_t bytes;
} Area;

static Area areas[kAreas];
static int area_count;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static bool stores_run;

static char* map(size_t bytes, int prot, int flags, int fd, off_t offset) {
  char* at = mmap(NULL, bytes, prot, flags, fd, offset);
  MUST(at != MAP_FAILED);
  return at;
}

static void* store_all_the_time(void* unused) {
  (void)unused;
  for (uint64_t round = 1;; round++) {
    pthread_mutex_lock(&turn);
    for (int i = 0; i < area_count; i++) {
      size_t at = mix(round * kAreas + (uint64_t)i) % (areas[i].bytes / 8) * 8;
      uint64_t word = mix(round) | 1;
      memcpy(areas[i].at + at, &word, 8);
      memcpy(areas[i].shadow + at, &word, 8);
    }
    pthread_mutex_unlock(&turn);
    if (round % 16 == 0) pause_ms(1);
  }
  return NULL;
}

/// What is at `at` is taken for right, and stored to from now on.
static void store_to(char* at, size_t bytes) {
  MUST(area_count < kAreas);
  char* shadow = map(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(shadow, at, bytes);
  pthread_mutex_lock(&turn);
  areas[area_count++] = (Area){at, shadow, bytes};
  pthread_mutex_unlock(&turn);
  pthread_t thread;
  if (!stores_run) MUST(!pthread_create(&thread, NULL, store_all_the_time, NULL));
  stores_run = true;
}

static const char* same_as_shadow(const char* at, const char* what) {
  const char* reason = NULL;
  pthread_mutex_lock(&turn);
  for (int i = 0; i < area_count && !reason; i++)
    for (size_t page = 0; areas[i].at == at && page < areas[i].bytes && !reason; page += kPage)
      if (memcmp(at + page, areas[i].shadow + page, kPage))
        reason = fail("%s differs in page %zu", what, page / kPage);
  pthread_mutex_unlock(&turn);
  return reason;
}

/// Of the mapping that begins at `at`: whether smaps calls it hugetlbfs, and its permissions.
static bool is_hugetlb(const char* at, const char* permissions) {
  FILE* smaps = fopen("/proc/self/smaps", "re");
  char line[512], found[5] = "";
  unsigned long start, end;
  bool here = false, huge = false;
  while (fgets(line, sizeof line, smaps)) {
    if (sscanf(line, "%lx-%lx %4s", &start, &end, line + 400) == 3 && (here = start == (uintptr_t)at))
      memcpy(found, line + 400, 5);
    if (here && !strncmp(line, "VmFlags:", 8)) huge = strstr(line, " ht") != NULL;
  }
  fclose(smaps);
  return huge && !strcmp(found, permissions);
}

// ---- private
static char* anon;
static void anon_prepare(void) {
  anon = map(3UL * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  fill(anon, kHuge, 1);  // the second half-filled, the third never touched but for the stores
  fill(anon + kHuge, kHuge / 2, 2);
  store_to(anon, 3UL * kHuge);
}
static const char* anon_check(int round) {
  (void)round;
  EXPECT(is_hugetlb(anon, "rw-p"), "it is ordinary memory now");
  return same_as_shadow(anon, "private memory");
}

// ---- a part of an area gone, the rest under other protections
static char* patchwork;
static void protections_prepare(void) {
  patchwork = map(4UL * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  fill(patchwork, 4UL * kHuge, 3);
  MUST(!munmap(patchwork, kHuge));
  MUST(!mprotect(patchwork + kHuge, kHuge, PROT_READ) && !mprotect(patchwork + 2L * kHuge, kHuge, PROT_NONE));
}
static const char* protections_check(int round) {
  (void)round;
  EXPECT(is_hugetlb(patchwork + kHuge, "r--p"), "the area to read");
  EXPECT(is_hugetlb(patchwork + 2L * kHuge, "---p"), "the area without access");
  EXPECT(is_hugetlb(patchwork + 3L * kHuge, "rw-p"), "the open area");
  static char wanted[4 * kHuge];
  fill(wanted, sizeof wanted, 3);
  MUST(!mprotect(patchwork + 2L * kHuge, kHuge, PROT_READ));
  bool same = !memcmp(patchwork + kHuge, wanted + kHuge, 3L * kHuge);
  MUST(!mprotect(patchwork + 2L * kHuge, kHuge, PROT_NONE));
  EXPECT(same, "contents");
  return NULL;
}

// ---- discarded again and again, and then only read: empty, however full it was before
static char* holes;
static pthread_mutex_t holes_turn = PTHREAD_MUTEX_INITIALIZER;
static bool holes_full;
static void* empty_and_fill(void* unused) {
  (void)unused;
  for (uint64_t round = 0;; round++) {
    pthread_mutex_lock(&holes_turn);
    holes_full = round % 2;
    if (holes_full) {
      fill(holes, kHuge, 4);
    } else {
      MUST(!madvise(holes, kHuge, MADV_DONTNEED));
      *(volatile char*)holes;
    }
    pthread_mutex_unlock(&holes_turn);
    pause_ms(holes_full ? 40 : 400);  // a move is to begin while it is full, and end when it is not
  }
  return NULL;
}
static void holes_prepare(void) {
  holes = map(kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  pthread_t thread;
  MUST(!pthread_create(&thread, NULL, empty_and_fill, NULL));
}
static const char* holes_check(int round) {
  (void)round;
  pthread_mutex_lock(&holes_turn);
  long at = holes_full ? differs(holes, kHuge, 4) : all_zero(holes, kHuge);
  bool full = holes_full;
  pthread_mutex_unlock(&holes_turn);
  EXPECT(at < 0, "%s, but not at %#lx", full ? "full" : "empty", at);
  return NULL;
}

// ---- discarded once, when DIR/empty appears, and then only read
static char* emptied;
static bool is_emptied;
static void* empty_when_told(void* unused) {
  (void)unused;
  while (!program_file("empty")) pause_ms(1);
  MUST(!madvise(emptied, 2UL * kHuge, MADV_DONTNEED));
  *(volatile char*)emptied;  // the first is there again, of zeros; the second is not
  __atomic_store_n(&is_emptied, true, __ATOMIC_RELEASE);
  program_write("emptied", "");
  return NULL;
}
static void emptied_prepare(void) {
  emptied = map(3UL * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  fill(emptied, 3UL * kHuge, 9);
  pthread_t thread;
  MUST(!pthread_create(&thread, NULL, empty_when_told, NULL));
}
static const char* emptied_check(int round) {
  (void)round;
  static char wanted[3 * kHuge];
  fill(wanted, sizeof wanted, 9);
  if (__atomic_load_n(&is_emptied, __ATOMIC_ACQUIRE)) memset(wanted, 0, 2UL * kHuge);
  for (size_t i = 0; i < 3; i++)
    EXPECT(!memcmp(emptied + i * kHuge, wanted + i * kHuge, kHuge), "huge page %zu", i);
  return NULL;
}

// ---- shared without a name
static char* shared;
static void shared_prepare(void) {
  shared = map(2UL * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  fill(shared + kHuge, kHuge, 5);
  store_to(shared, 2UL * kHuge);
}
static const char* shared_check(int round) {
  (void)round;
  EXPECT(is_hugetlb(shared, "rw-s"), "it is ordinary memory now");
  return same_as_shadow(shared, "shared memory");
}

// ---- a memfd, mapped twice from different places
static char *memfd_shared, *memfd_private;
static int memfd;
static void memfd_prepare(void) {
  memfd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB | MFD_ALLOW_SEALING);
  MUST(memfd >= 0 && !ftruncate(memfd, 4L * kHuge));
  memfd_shared = map(2UL * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, kHuge);
  fill(memfd_shared, kHuge, 6);
  memfd_private = map(2UL * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, kHuge);
  memfd_private[100] = 1;  // its first page is its own, the other the object's
  store_to(memfd_shared, kHuge);
}
static const char* memfd_check(int round) {
  (void)round;
  EXPECT(is_hugetlb(memfd_shared, "rw-s") && is_hugetlb(memfd_private, "rw-p"), "it is ordinary memory now");
  static char wanted[kHuge];
  fill(wanted, kHuge, 6);
  wanted[100] = 1;
  EXPECT(!memcmp(memfd_private, wanted, kHuge), "the private page");
  memfd_shared[kHuge + 7] = (char)round;
  EXPECT(memfd_private[kHuge + 7] == (char)round, "both mappings show one object no more");
  struct stat status;
  MUST(!fstat(memfd, &status));
  EXPECT(status.st_size == 4L * kHuge && status.st_blksize == kHuge, "size %ld, pages of %ld",
         (long)status.st_size, (long)status.st_blksize);
  return same_as_shadow(memfd_shared, "the shared page");
}

// ---- a memfd that nothing maps, with a hole, sealed
static int unmapped;
static void unmapped_prepare(void) {
  unmapped = memfd_create("unmapped", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB | MFD_ALLOW_SEALING);
  MUST(unmapped >= 0 && !ftruncate(unmapped, 3L * kHuge));
  char* at = map(3UL * kHuge, PROT_READ | PROT_WRITE, MAP_SHARED, unmapped, 0);
  fill(at, 3UL * kHuge, 8);
  MUST(!munmap(at, 3UL * kHuge));
  MUST(!fallocate(unmapped, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kHuge, kHuge));
  MUST(!fcntl(unmapped, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE));
}
static const char* unmapped_check(int round) {
  (void)round;
  static char wanted[3 * kHuge];
  fill(wanted, sizeof wanted, 8);
  memset(wanted + kHuge, 0, kHuge);
  char* at = map(3UL * kHuge, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, unmapped, 0);
  bool same = !memcmp(at, wanted, kHuge) && !memcmp(at + 2L * kHuge, wanted + 2L * kHuge, kHuge);
  munmap(at, 3UL * kHuge);
  EXPECT(same, "contents");
  char page[kPage];
  EXPECT(pread(unmapped, page, kPage, kHuge) == kPage && all_zero(page, kPage) < 0, "the hole");
  EXPECT(fcntl(unmapped, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_WRITE), "seals %#x",
         fcntl(unmapped, F_GET_SEALS));
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"anon", anon_prepare, anon_check, false},
                               {"protections", protections_prepare, protections_check, false},
                               {"holes", holes_prepare, holes_check, false},
                               {"emptied", emptied_prepare, emptied_check, false},
                               {"shared", shared_prepare, shared_check, false},
                               {"memfd", memfd_prepare, memfd_check, false},
                               {"unmapped", unmapped_prepare, unmapped_check, false},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
