// A heart that beats every 0.2 ms by CLOCK_REALTIME and remembers its longest pauses: what a program notices
// of its own move. heartbeat DIR TOUCH_MIB [DIRTY_MIB_PER_S [STORES_PER_S [HOT_PAGES [HELD_MIB]]]]: touches
// that much memory, rewrites pages of it at that pace, stores single words all over it at that, rewrites so
// many pages, spread over it, every 2 ms, holds a memfd of that size which it never maps, and on each check
// verifies all of it and writes DIR/beats.N: JSON with the longest pauses since the last check.
#include "program.h"

#include <pthread.h>
#include <sys/prctl.h>

enum { kPage = 4096, kKept = 1024 };
static const int64_t kBeat = 200000;

typedef struct {
  int64_t at_ns, gap_ns;
} Pause;
static Pause pauses[kKept];
static uint64_t beats;
static pthread_mutex_t beat_lock = PTHREAD_MUTEX_INITIALIZER;

static char* memory;
static uint32_t* generation;
static size_t pages;
static uint32_t* stores;
static long dirty_per_s, stores_per_s, held_mib;
static int held;
static size_t hot_pages;
static pthread_mutex_t page_lock = PTHREAD_MUTEX_INITIALIZER;

static void remember(int64_t at, int64_t gap) {
  int least = 0;
  for (int i = 1; i < kKept; i++)
    if (pauses[i].gap_ns < pauses[least].gap_ns) least = i;
  if (gap > pauses[least].gap_ns) pauses[least] = (Pause){at, gap};
}

static void* beat_main(void* unused) {
  prctl(PR_SET_TIMERSLACK, 1);
  int64_t last = now_ns(CLOCK_REALTIME);
  for (;;) {
    struct timespec rest = {0, kBeat};
    nanosleep(&rest, NULL);
    int64_t now = now_ns(CLOCK_REALTIME);
    pthread_mutex_lock(&beat_lock);
    remember(now, now - last);
    beats++;
    pthread_mutex_unlock(&beat_lock);
    last = now;
  }
  return unused;
}

// Quick to write and to verify: the first word of each 64 bytes tells page, generation and place.
static void write_page(size_t page) {
  uint64_t* words = (uint64_t*)(memory + page * kPage);
  for (size_t i = 0; i < kPage / 8; i += 8) words[i] = mix(page) + generation[page] + i;
}
static bool page_right(size_t page) {
  const uint64_t* words = (const uint64_t*)(memory + page * kPage);
  for (size_t i = 0; i < kPage / 8; i += 8)
    if (words[i] != mix(page) + generation[page] + i) return false;
  return words[1] == stores[page];
}

static void store_word(size_t page) {
  ((uint64_t*)(memory + page * kPage))[1] = ++stores[page];
}

static void rewrite_page(size_t page) {
  generation[page]++;
  write_page(page);
}

static void* dirty_main(void* unused) {
  const size_t per_turn = (size_t)dirty_per_s * 256 / 500;  // pages in 2 ms
  const size_t words_per_turn = (size_t)stores_per_s / 500;
  uint64_t random = 1;
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (;;) {
    pthread_mutex_lock(&page_lock);
    for (size_t i = 0; i < per_turn; i++) rewrite_page((random = mix(random + 1)) % pages);
    for (size_t i = 0; i < hot_pages; i++) rewrite_page(i * (pages / hot_pages));
    for (size_t i = 0; i < words_per_turn; i++) store_word((random = mix(random + 1)) % pages);
    pthread_mutex_unlock(&page_lock);
    next.tv_nsec += 2000000;
    if (next.tv_nsec >= 1000000000) next = (struct timespec){next.tv_sec + 1, next.tv_nsec - 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
  }
  return unused;
}

static uint64_t mib[(1 << 20) / 8];
static void hold_memfd(void) {
  held = memfd_create("held", MFD_CLOEXEC);
  MUST(held >= 0);
  for (long i = 0; i < held_mib; i++) {
    fill(mib, sizeof mib, (uint64_t)i);
    MUST(write(held, mib, sizeof mib) == sizeof mib);
  }
}
static const char* check_memfd(void) {
  for (long i = 0; i < held_mib; i++) {
    EXPECT(pread(held, mib, sizeof mib, i * (long)sizeof mib) == sizeof mib, "MiB %ld of the memfd", i);
    EXPECT(differs(mib, sizeof mib, (uint64_t)i) < 0, "MiB %ld of the memfd differs", i);
  }
  return NULL;
}

static void prepare(void) {
  if (held_mib) hold_memfd();
  memory = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  generation = calloc(pages, sizeof *generation);
  stores = calloc(pages, sizeof *stores);
  MUST(memory != MAP_FAILED && generation && stores);
  for (size_t page = 0; page < pages; page++) write_page(page);
  pthread_t thread;
  MUST(!pthread_create(&thread, NULL, beat_main, NULL));
  if (dirty_per_s || stores_per_s || hot_pages) MUST(!pthread_create(&thread, NULL, dirty_main, NULL));
}

/// Those of the verification would crowd out that of a short freeze.
static void forget_pauses(void) {
  pthread_mutex_lock(&beat_lock);
  memset(pauses, 0, sizeof pauses);
  pthread_mutex_unlock(&beat_lock);
}

static const char* check(int round) {
  static char text[kKept * 64];
  char name[32];
  pthread_mutex_lock(&beat_lock);
  size_t used = (size_t)snprintf(text, sizeof text, "{\"beats\": %lu, \"pauses\": [", beats);
  for (int i = 0; i < kKept; i++)
    used += (size_t)snprintf(text + used, sizeof text - used, "%s{\"at_ns\": %ld, \"ms\": %.3f}",
                             i ? ", " : "", (long)pauses[i].at_ns, (double)pauses[i].gap_ns / 1e6);
  snprintf(text + used, sizeof text - used, "]}\n");
  pthread_mutex_unlock(&beat_lock);
  snprintf(name, sizeof name, "beats.%d", round);
  program_write(name, text);
  for (size_t page = 0; page < pages; page++) {
    if (page % 256 == 0) pthread_mutex_lock(&page_lock);
    bool right = page_right(page);
    if (page % 256 == 255 || page == pages - 1 || !right) pthread_mutex_unlock(&page_lock);
    EXPECT(right, "page %zu of %zu, generation %u", page, pages, generation[page]);
  }
  const char* wrong = check_memfd();
  forget_pauses();
  return wrong;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"heartbeat", prepare, check, false}, {NULL, NULL, NULL, false}};
  if (argc < 3) {
    fprintf(stderr, "usage: %s DIR TOUCH_MIB [DIRTY_MIB_PER_S [STORES_PER_S [HOT_PAGES [HELD_MIB]]]]\n",
            argv[0]);
    return 2;
  }
  pages = (size_t)atol(argv[2]) * 256;
  dirty_per_s = argc > 3 ? atol(argv[3]) : 0;
  stores_per_s = argc > 4 ? atol(argv[4]) : 0;
  hot_pages = argc > 5 ? (size_t)atol(argv[5]) : 0;
  held_mib = argc > 6 ? atol(argv[6]) : 0;
  return program_main(2, argv, cases);
}
