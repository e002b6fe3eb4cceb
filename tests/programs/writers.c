// Threads that write without pause, faster than any link, and one that only counts: what a throttle does to
// each. writers DIR MIB [WRITERS]: each writer rewrites its own MIB. Each check verifies all of it, and
// writes DIR/rates.N: JSON with what every thread got done in a second of wall time, measured just then.
#include "program.h"

#include <pthread.h>

enum { kPage = 4096, kWords = kPage / 8, kMost = 8, kBatch = 64, kWindowMs = 300 };

typedef struct {
  uint64_t* memory;
  uint32_t* generation;
  pthread_mutex_t lock;
  uint64_t written;  // pages
} Writer;

static Writer writers[kMost];
static int writer_count = 1;
static size_t pages;
static uint64_t counted;

static void write_page(Writer* w, size_t page) {
  w->generation[page]++;
  uint64_t* words = w->memory + page * kWords;
  for (size_t i = 0; i < kWords; i++)
    words[i] = mix(page * kWords + i + ((uint64_t)w->generation[page] << 32));
}

static bool page_right(const Writer* w, size_t page) {
  const uint64_t* words = w->memory + page * kWords;
  for (size_t i = 0; i < kWords; i++)
    if (words[i] != mix(page * kWords + i + ((uint64_t)w->generation[page] << 32))) return false;
  return true;
}

static void* writer_main(void* argument) {
  Writer* w = argument;
  for (size_t page = 0;;) {
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < kBatch; i++, page = (page + 1) % pages) write_page(w, page);
    pthread_mutex_unlock(&w->lock);
    __atomic_fetch_add(&w->written, kBatch, __ATOMIC_RELAXED);
  }
  return NULL;
}

static void* counter_main(void* unused) {
  for (;;) {
    for (volatile int i = 0; i < 1000; i++) {
    }
    __atomic_fetch_add(&counted, 1, __ATOMIC_RELAXED);
  }
  return unused;
}

static void prepare(void) {
  pthread_t thread;
  for (Writer* w = writers; w < writers + writer_count; w++) {
    w->memory = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    w->generation = calloc(pages, sizeof *w->generation);
    MUST(w->memory != MAP_FAILED && w->generation);
    pthread_mutex_init(&w->lock, NULL);
    for (size_t page = 0; page < pages; page++) write_page(w, page);
    MUST(!pthread_create(&thread, NULL, writer_main, w));
  }
  MUST(!pthread_create(&thread, NULL, counter_main, NULL));
}

static void measure(int round) {
  uint64_t before = 0, after = 0, count_before = __atomic_load_n(&counted, __ATOMIC_RELAXED);
  for (int i = 0; i < writer_count; i++) before += __atomic_load_n(&writers[i].written, __ATOMIC_RELAXED);
  int64_t start = now_ns(CLOCK_MONOTONIC);
  pause_ms(kWindowMs);
  double seconds = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
  for (int i = 0; i < writer_count; i++) after += __atomic_load_n(&writers[i].written, __ATOMIC_RELAXED);
  uint64_t count_after = __atomic_load_n(&counted, __ATOMIC_RELAXED);
  char text[200], name[32];
  snprintf(text, sizeof text, "{\"pages\": %.1f, \"counts\": %.1f}\n", (double)(after - before) / seconds,
           (double)(count_after - count_before) / seconds);
  snprintf(name, sizeof name, "rates.%d", round);
  program_write(name, text);
}

static const char* check(int round) {
  measure(round);
  for (int i = 0; i < writer_count; i++) {
    for (size_t page = 0; page < pages; page++) {
      if (page % kBatch == 0) pthread_mutex_lock(&writers[i].lock);
      bool right = page_right(&writers[i], page);
      if (page % kBatch == kBatch - 1 || page == pages - 1 || !right) pthread_mutex_unlock(&writers[i].lock);
      EXPECT(right, "writer %d, page %zu of %zu, generation %u", i, page, pages, writers[i].generation[page]);
    }
  }
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"writers", prepare, check, false}, {NULL, NULL, NULL, false}};
  if (argc < 3) {
    fprintf(stderr, "usage: %s DIR MIB [WRITERS]\n", argv[0]);
    return 2;
  }
  pages = (size_t)atol(argv[2]) * 256;
  if (argc > 3) writer_count = atoi(argv[3]) < kMost ? atoi(argv[3]) : kMost;
  return program_main(2, argv, cases);
}
