// Threads that write without pause, faster than any link, and one that only counts: what a throttle does to
// each. writers DIR MIB [WRITERS]: each writer rewrites its own MIB. Each check verifies all of it, and
// writes DIR/rates.N: JSON with what the threads got done in a second of wall time, measured just then, and
// what they would have, had nobody else wanted the processors; and how long the first
// writer's batches took.
#include "program.h"

#include <pthread.h>

enum { kPage = 4096, kWords = kPage / 8, kMost = 8, kBatch = 64, kWindowMs = 300, kRemembered = 1 << 15 };

typedef struct {
  uint64_t* memory;
  uint32_t* generation;
  pthread_mutex_t lock;
  uint64_t written;  // pages
  pid_t tid;
} Writer;

static Writer writers[kMost];
static int writer_count = 1;
static size_t pages;
static uint64_t counted;
static uint32_t batch_ns[kRemembered];  // of the first writer, the latest
static uint64_t batches;
static pid_t counter_tid;

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
  w->tid = (pid_t)syscall(SYS_gettid);
  for (size_t page = 0;;) {
    pthread_mutex_lock(&w->lock);
    int64_t begun = now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < kBatch; i++, page = (page + 1) % pages) write_page(w, page);
    int64_t took = now_ns(CLOCK_MONOTONIC) - begun;
    pthread_mutex_unlock(&w->lock);
    if (w == writers) {
      uint64_t at = __atomic_load_n(&batches, __ATOMIC_RELAXED);
      batch_ns[at % kRemembered] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
      __atomic_store_n(&batches, at + 1, __ATOMIC_RELEASE);
    }
    __atomic_fetch_add(&w->written, kBatch, __ATOMIC_RELAXED);
  }
  return NULL;
}

static void* counter_main(void* unused) {
  counter_tid = (pid_t)syscall(SYS_gettid);
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

// What a thread has done, and the time that it had a processor, or waited for one.
typedef struct {
  double done, ran, waited;
} Work;
static Work work_of(const uint64_t* done, pid_t tid) {
  Work work = {(double)__atomic_load_n(done, __ATOMIC_RELAXED), 0, 0};
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/schedstat", tid);
  sscanf(slurp(path), "%lf %lf", &work.ran, &work.waited);
  return work;
}
typedef struct {
  double done, alone;
} Rate;
static Rate per_second(Work before, Work after, double seconds) {
  double ran = after.ran - before.ran, waited = after.waited - before.waited;
  double done = (after.done - before.done) / seconds;
  return (Rate){done, ran > 0 ? done * (ran + waited) / ran : done};
}

static int by_size(const void* a, const void* b) {
  uint32_t x = *(const uint32_t*)a, y = *(const uint32_t*)b;
  return (x > y) - (x < y);
}
/// In microseconds, of the batches from `first` on.
static double percentile(uint64_t first, double part) {
  static uint32_t sorted[kRemembered];
  uint64_t end = __atomic_load_n(&batches, __ATOMIC_ACQUIRE), count = end - first;
  if (count > kRemembered / 2) count = kRemembered / 2;  // the writer goes on writing meanwhile
  if (count == 0) return 0;
  for (uint64_t i = 0; i < count; i++) sorted[i] = batch_ns[(end - count + i) % kRemembered];
  qsort(sorted, count, sizeof *sorted, by_size);
  return sorted[(uint64_t)((double)(count - 1) * part)] / 1e3;
}

static void measure(int round) {
  Work before[kMost], count_before = work_of(&counted, counter_tid);
  for (int i = 0; i < writer_count; i++) before[i] = work_of(&writers[i].written, writers[i].tid);
  uint64_t first_batch = __atomic_load_n(&batches, __ATOMIC_ACQUIRE);
  int64_t start = now_ns(CLOCK_MONOTONIC);
  pause_ms(kWindowMs);
  double seconds = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
  Rate written = {0, 0}, counts = per_second(count_before, work_of(&counted, counter_tid), seconds);
  for (int i = 0; i < writer_count; i++) {
    Rate one = per_second(before[i], work_of(&writers[i].written, writers[i].tid), seconds);
    written = (Rate){written.done + one.done, written.alone + one.alone};
  }
  char text[300], name[32];
  snprintf(text, sizeof text,
           "{\"pages\": %.1f, \"pages_alone\": %.1f, \"counts_alone\": %.1f, \"batch_p50_us\": %.1f, "
           "\"batch_p99_us\": %.1f}\n",
           written.done, written.alone, counts.alone, percentile(first_batch, 0.5),
           percentile(first_batch, 0.99));
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
