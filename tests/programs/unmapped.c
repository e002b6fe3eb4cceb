// Shared memory that no mapping shows, or one for a moment only: what the freeze need not read, and what it
// must not miss.
#include "program.h"

#include <pthread.h>

enum { kPage = 4096, kMiB = 1 << 20 };

// ---- still: filled once, never mapped; behind it nothing but a hole
enum { kStillMiB = 512 };
static int still;
static void still_prepare(void) {
  static uint64_t text[kMiB / 8];
  still = memfd_create("still", MFD_CLOEXEC);
  MUST(still >= 0 && !ftruncate(still, 4 * (off_t)kStillMiB * kMiB));
  for (int i = 0; i < kStillMiB; i++) {
    fill(text, sizeof text, (uint64_t)i + 1);
    MUST(pwrite(still, text, sizeof text, (off_t)i * kMiB) == sizeof text);
  }
}
static const char* still_check(int round) {
  (void)round;
  static uint64_t text[kMiB / 8];
  for (int i = 0; i < kStillMiB; i++) {
    EXPECT(pread(still, text, sizeof text, (off_t)i * kMiB) == sizeof text, "MiB %d cannot be read", i);
    EXPECT(differs(text, sizeof text, (uint64_t)i + 1) < 0, "MiB %d differs", i);
  }
  EXPECT(lseek(still, (off_t)kStillMiB * kMiB, SEEK_DATA) == -1 && errno == ENXIO, "the hole was filled");
  return NULL;
}

// ---- pages that a thread rewrites, each with its generation; 0: a hole
enum { kPages = 8192 };
typedef struct {
  int fd;
  pthread_mutex_t lock;
  uint64_t generation[kPages];
  bool (*put)(int fd, size_t page, uint64_t generation);
} Rewritten;

static void page_text(uint64_t* text, size_t page, uint64_t generation) {
  fill(text, kPage, generation * kPages + page);
}

static void* rewrite(void* argument) {
  Rewritten* file = argument;
  uint64_t random = 7;
  for (;;) {
    size_t page = (random = mix(random + 1)) % kPages;
    pthread_mutex_lock(&file->lock);
    uint64_t next = random % 8 == 0 ? 0 : random | 1;
    if (file->put(file->fd, page, next)) file->generation[page] = next;
    pthread_mutex_unlock(&file->lock);
    pause_ms(1);
  }
  return NULL;
}

static void rewritten_prepare(Rewritten* file, int fd) {
  pthread_t thread;
  file->fd = fd;
  MUST(fd >= 0 && !ftruncate(fd, (off_t)kPages * kPage));
  for (size_t page = 0; page < kPages; page++) {
    file->generation[page] = 1;
    MUST(file->put(fd, page, 1));
  }
  MUST(!pthread_create(&thread, NULL, rewrite, file));
}

static const char* rewritten_check(Rewritten* file) {
  static uint64_t text[kPage / 8], wanted[kPage / 8];
  const char* wrong = NULL;
  pthread_mutex_lock(&file->lock);
  for (size_t page = 0; page < kPages && !wrong; page++) {
    memset(wanted, 0, kPage);
    if (file->generation[page]) page_text(wanted, page, file->generation[page]);
    if (pread(file->fd, text, kPage, (off_t)page * kPage) != kPage)
      wrong = fail("page %zu: unreadable", page);
    else if (memcmp(text, wanted, kPage))
      wrong = fail("page %zu differs", page);
  }
  pthread_mutex_unlock(&file->lock);
  return wrong;
}

static bool punch(int fd, size_t page) {
  return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * kPage, kPage);
}

// ---- written: by descriptor
static bool put_by_call(int fd, size_t page, uint64_t generation) {
  uint64_t text[kPage / 8];
  if (!generation) return punch(fd, page);
  page_text(text, page, generation);
  return pwrite(fd, text, kPage, (off_t)page * kPage) == kPage;
}
static Rewritten written = {.lock = PTHREAD_MUTEX_INITIALIZER, .put = put_by_call};
static void written_prepare(void) {
  rewritten_prepare(&written, memfd_create("written", MFD_CLOEXEC));
}
static const char* written_check(int round) {
  (void)round;
  return rewritten_check(&written);
}

// ---- glimpsed: by a mapping that is gone right after
static bool put_by_glimpse(int fd, size_t page, uint64_t generation) {
  if (!generation) return punch(fd, page);
  void* at = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)page * kPage);
  if (at == MAP_FAILED) return false;
  page_text(at, page, generation);
  return !munmap(at, kPage);
}
static Rewritten glimpsed = {.lock = PTHREAD_MUTEX_INITIALIZER, .put = put_by_glimpse};
static void glimpsed_prepare(void) {
  rewritten_prepare(&glimpsed, memfd_create("glimpsed", MFD_CLOEXEC));
}
static const char* glimpsed_check(int round) {
  (void)round;
  return rewritten_check(&glimpsed);
}

// ---- deleted: a file that lost its name, one that never had one, and one by two descriptions
static int lost, second, never;
static Rewritten busy = {.lock = PTHREAD_MUTEX_INITIALIZER, .put = put_by_call};
static int open_deleted(const char* name) {
  int fd = open(program_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
  MUST(fd >= 0 && !unlink(program_path(name)));
  return fd;
}
static void deleted_prepare(void) {
  uint64_t text[kPage / 8];
  fill(text, sizeof text, 91);
  lost = open(program_path("lost"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
  second = open(program_path("lost"), O_WRONLY | O_APPEND);
  never = open(program_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  MUST(lost >= 0 && second >= 0 && never >= 0 && !unlink(program_path("lost")));
  MUST(write(lost, text, sizeof text) == sizeof text && lseek(lost, 100, SEEK_SET) == 100);
  MUST(!ftruncate(never, 5000) && pwrite(never, text, 8, 4096) == 8);
  rewritten_prepare(&busy, open_deleted("busy"));
}
static const char* deleted_check(int round) {
  uint64_t text[kPage / 8], eight;
  struct stat found, twin;
  EXPECT(!fstat(lost, &found) && !fstat(second, &twin) && found.st_ino == twin.st_ino, "no longer one file");
  EXPECT(found.st_nlink == 0 && (found.st_mode & 07777) == 0640, "links %d, mode %o", (int)found.st_nlink,
         found.st_mode);
  EXPECT(found.st_size == kPage + 8 * (round - 1), "size %ld in round %d", (long)found.st_size, round);
  EXPECT(lseek(lost, 0, SEEK_CUR) == 100, "offset %ld", (long)lseek(lost, 0, SEEK_CUR));
  EXPECT(pread(lost, text, sizeof text, 0) == sizeof text && differs(text, sizeof text, 91) < 0, "content");
  uint64_t mark = (uint64_t)round;
  EXPECT(write(second, &mark, 8) == 8, "cannot append");
  EXPECT(pread(lost, &eight, 8, kPage + 8 * (off_t)(round - 1)) == 8 && eight == mark, "the end differs");
  EXPECT(!fstat(never, &found) && found.st_size == 5000, "size %ld", (long)found.st_size);
  EXPECT(pread(never, &eight, 8, 4096) == 8 && eight == text[0], "content of the one that had no name");
  return rewritten_check(&busy);
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"still", still_prepare, still_check, false},
                               {"written", written_prepare, written_check, false},
                               {"glimpsed", glimpsed_prepare, glimpsed_check, false},
                               {"deleted", deleted_prepare, deleted_check, false},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
