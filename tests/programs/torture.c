// The torture, main part: the shadow, its comparison with memory, the rounds.
//
//     torture DIR SEED THREADS [+OPERATION | -OPERATION | =OPERATION]...
//
// Each thread has a world of its own: areas, objects, a random stream. All operations run unless -NAME takes
// one out; with =NAME only those named so run (and `map`, without which there is nothing). Where the host has
// no huge pages of hugetlbfs to spare, big areas are of transparent ones. A failure tells the address, the
// kind of area, what differs and the last operations on the area; DIR/report holds all of it.
#include "torture.h"

#include <signal.h>

char torture_pattern[kPatternBytes];

enum { kMostThreads = 8, kMostOperations = 64 };
static World* worlds;
static int threads;
static Operation chosen[kMostOperations];
static int operations, all_weights;
static const char kZeroPage[kPage];

const char* torture_path(const char* name) {
  return program_path(name);
}

uint64_t next(World* w) {
  return w->random = mix(w->random + 0x9e3779b97f4a7c15ULL);
}

int below(World* w, int limit) {
  return (int)(next(w) % (uint64_t)limit);
}

bool is_anonymous(const Area* area) {
  return !area->object;
}

bool is_big(const Area* area) {
  return area->kind == kThp || area->kind == kHugetlb;
}

int unit_of(const Area* area) {
  return area->kind == kHugetlb ? 512 : 1;
}

bool is_uniform(const Area* area) {
  for (int i = 0; i < area->pages; i++)
    if (area->state[i] & (kReadonly | kNoAccess | kGuard)) return false;
  return true;
}

const char* expected(const Area* area, int page) {
  if (area->shared) return area->object->shadow + (size_t)(area->first + page) * kPage;
  if (area->state[page] & kOwn) return area->shadow + (size_t)page * kPage;
  return area->object ? area->object->shadow + (size_t)(area->first + page) * kPage : kZeroPage;
}

char* shadow_to_write(Area* area, int page) {
  if (area->shared) return area->object->shadow + (size_t)(area->first + page) * kPage;
  char* shadow = area->shadow + (size_t)page * kPage;
  if (!(area->state[page] & kOwn)) memcpy(shadow, expected(area, page), kPage);
  memcpy(area->before + (size_t)page * kPage, shadow, kPage);
  area->state[page] |= kOwn;
  return shadow;
}

Area* any_area(World* w) {
  Area* area = &w->slots[below(w, kSlots)];
  return area->at ? area : NULL;
}

Area* free_slot(World* w, bool big) {
  for (int i = big ? 0 : kBig; i < (big ? kBig : kSlots); i++)
    if (!w->slots[i].at) return &w->slots[i];
  return NULL;
}

// ---- what went wrong
static const char* kind_name(const Area* area) {
  static const char* names[kKinds] = {"anonymous", "huge", "hugetlb", "growing",
                                      "heap",      "file", "memfd",   "shared"};
  return names[area->kind];
}

void note(World* w, const char* operation, const Area* area, int page, int count) {
  w->log[w->operations % kLog] =
      (Entry){w->operations, now_ns(CLOCK_MONOTONIC) / 1000000, operation, area->id, area->at, page, count};
}

static size_t tell(World* w, size_t used, const char* format, ...) {
  va_list args;
  va_start(args, format);
  int more = used < sizeof w->wrong ? vsnprintf(w->wrong + used, sizeof w->wrong - used, format, args) : 0;
  va_end(args);
  return used + (size_t)more;
}

/// The mappings of the area as the kernel has them. Its own descriptor and buffer: nothing is allocated here.
static size_t tell_maps(World* w, size_t used, const Area* area) {
  static char text[1 << 20];
  int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  size_t have = 0;
  for (ssize_t got; have < sizeof text - 1 && (got = read(fd, text + have, sizeof text - 1 - have)) > 0;)
    have += (size_t)got;
  close(fd);
  text[have] = 0;
  uintptr_t from = (uintptr_t)area->at, to = from + (size_t)area->pages * kPage;
  char* rest = text;
  for (char* line; (line = strsep(&rest, "\n"));) {
    unsigned long start, end;
    if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= to && end >= from)
      used = tell(w, used, "  %s\n", line);
  }
  return used;
}

static void tell_history(World* w, size_t used, const Area* area) {
  used = tell_maps(w, used, area);
  int64_t now = now_ns(CLOCK_MONOTONIC) / 1000000;
  int told = 0;
  for (uint64_t back = 0; back < kLog && back < w->operations && told < 24; back++) {
    const Entry* one = &w->log[(w->operations - back) % kLog];
    const char *end = area->at + (size_t)area->pages * kPage,
               *one_end = one->address + (size_t)(one->page + one->count) * kPage;
    bool near = one->address && one->address < end && one_end > area->at;
    if (!one->operation || (one->area != area->id && !near)) continue;
    used = tell(w, used, "  -%ld ms #%lu %s area %u at %p pages %d+%d\n", (long)(now - one->at_ms),
                one->number, one->operation, one->area, (void*)one->address, one->page, one->count);
    told++;
  }
}

static size_t tell_area(World* w, const char* what, const Area* area, int page) {
  return tell(w, 0,
              "world %d after %lu operations: %s: %s%s area %u at %p, page %d of %d (%p), object page %d, "
              "state %x%s\n",
              w->index, w->operations, what, area->shared ? "shared " : "private ", kind_name(area), area->id,
              (void*)area->at, page, area->pages, (void*)(area->at + (size_t)page * kPage),
              area->first + page, area->shared ? 0 : area->state[page], area->locked ? " locked" : "");
}

void broken(World* w, const char* what, const Area* area, int page) {
  if (w->wrong[0]) return;
  char text[256];
  snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
  tell_history(w, tell_area(w, text, area, page), area);
}

static void tell_difference(World* w, const char* when, const Area* area, int page, const char* has) {
  const char* must = expected(area, page);
  int first = -1, last = 0, count = 0;
  for (int i = 0; i < kPage; i++)
    if (has[i] != must[i]) {
      first = first < 0 ? i : first;
      last = i;
      count++;
    }
  char text[256];
  bool old = !area->shared && !memcmp(has, area->before + (size_t)page * kPage, kPage);
  snprintf(text, sizeof text, "%s: %d bytes differ in +%d..+%d, first %02x instead of %02x%s%s%s", when,
           count, first, last, (uint8_t)has[first], (uint8_t)must[first],
           all_zero(has, kPage) < 0 ? ", has zeros" : "", all_zero(must, kPage) < 0 ? ", must be zeros" : "",
           old ? ", is as before the last write" : "");
  tell_history(w, tell_area(w, text, area, page), area);
}

static void verify_page(World* w, Area* area, int page, const char* when) {
  if (area->state[page] & kGuard) return;
  char* at = area->at + (size_t)page * kPage;
  bool hidden = area->state[page] & kNoAccess;
  area->cut = area->cut || hidden;
  int first = page / unit_of(area) * unit_of(area);
  char* whole = area->at + (size_t)first * kPage;
  size_t bytes = (size_t)unit_of(area) * kPage;
  if (hidden && mprotect(whole, bytes, PROT_READ)) return broken(w, "mprotect for a look", area, page);
  bool same = !memcmp(at, expected(area, page), kPage);
  if (!same && (area->state[page] & kLazy) && all_zero(at, kPage) < 0) same = true;
  if (!same && !w->wrong[0]) tell_difference(w, when, area, page, at);
  if (hidden && mprotect(whole, bytes, PROT_NONE)) broken(w, "mprotect after a look", area, page);
}

void verify(World* w, Area* area, int page, int count, const char* when) {
  for (int i = page; i < page + count && i < area->pages; i++) verify_page(w, area, i, when);
}

// ---- the rounds
static void look_somewhere(World* w) {
  Area* area = any_area(w);
  if (area) verify(w, area, below(w, area->pages), 4, "a look");
}

static void operate(World* w) {
  w->operations++;
  w->log[w->operations % kLog].operation = NULL;
  int at = below(w, all_weights);
  const Operation* one = chosen;
  while (at >= one->weight) at -= (one++)->weight;
  one->run(w);
  if (!w->wrong[0]) look_somewhere(w);
}

static void* work(void* argument) {
  World* w = argument;
  for (;;) {
    pthread_mutex_lock(&w->turn);
    for (int i = 0; i < 40 && !w->wrong[0]; i++) operate(w);
    pthread_mutex_unlock(&w->turn);
    pause_ms(1);
  }
  return NULL;
}

static void prepare_world(World* w, int index, uint64_t seed) {
  *w = (World){.index = index, .random = mix(seed * 1000003 + (uint64_t)index), .next_id = 1};
  pthread_mutex_init(&w->turn, NULL);
  for (int i = 0; i < kSlots; i++) {
    Area* area = &w->slots[i];
    area->capacity = i < kBig ? kBigPages : kSmallPages;
    area->shadow = mmap(NULL, (size_t)area->capacity * kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area->before = mmap(NULL, (size_t)area->capacity * kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area->state = calloc((size_t)area->capacity, 1);
    MUST(area->shadow != MAP_FAILED && area->before != MAP_FAILED && area->state);
  }
  for (int i = 0; i < kObjects; i++) {
    w->objects[i].shadow =
        mmap(NULL, (size_t)kObjectPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(w->objects[i].shadow != MAP_FAILED);
  }
}

/// A fault in a mapping that should be there: what each thread was doing.
static void crashed(int number, siginfo_t* info, void* context) {
  (void)context;
  static char text[sizeof worlds->wrong];
  World* here = &worlds[0];
  for (int i = 0; i < threads; i++)
    if (pthread_equal(worlds[i].thread, pthread_self())) here = &worlds[i];
  Entry* last = &here->log[here->operations % kLog];
  Area fault = {
      .at = (char*)((uintptr_t)info->si_addr & ~(uintptr_t)(kPage - 1)), .pages = 1, .id = last->area};
  here->wrong[0] = 0;
  tell_history(here, 0, &fault);
  snprintf(text, sizeof text, "signal %d at %p, code %d, world %d, operation %s\n%s", number, info->si_addr,
           info->si_code, here->index, last->operation ? last->operation : "?", here->wrong);
  program_write("report", text);
  signal(number, SIG_DFL);
}

static uint64_t seed_of_run;
static void prepare(void) {
  struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO};
  MUST(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL));
  fill(torture_pattern, sizeof torture_pattern, seed_of_run);
  int fd = open(torture_path("pattern"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  MUST(fd >= 0 && write(fd, torture_pattern, sizeof torture_pattern) == sizeof torture_pattern &&
       !fsync(fd) && !close(fd));
  worlds =
      mmap(NULL, sizeof(World) * (size_t)threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(worlds != MAP_FAILED);
  for (int i = 0; i < threads; i++) prepare_world(&worlds[i], i, seed_of_run);
  // ORDER: from here on nothing is allocated: the break belongs to the heap area.
  for (int i = 0; i < threads; i++)
    for (int n = 0; n < 300 && !worlds[i].wrong[0]; n++) operate(&worlds[i]);
  for (int i = 0; i < threads; i++) {
    MUST(!pthread_create(&worlds[i].thread, NULL, work, &worlds[i]));
  }
}

static const char* check(int round) {
  grow_stack(round);
  const char* reason = NULL;
  for (int i = 0; i < threads; i++) {
    World* w = &worlds[i];
    pthread_mutex_lock(&w->turn);
    for (int s = 0; s < kSlots && !w->wrong[0]; s++)
      if (w->slots[s].at) verify(w, &w->slots[s], 0, w->slots[s].pages, "after a move");
    pthread_mutex_unlock(&w->turn);
    if (!w->wrong[0]) continue;
    program_write("report", w->wrong);
    reason = fail("%.300s", w->wrong);
  }
  return reason;
}

static const char* chosen_word(int argc, char** argv, const char* name, char how) {
  for (int i = 4; i < argc; i++)
    if (argv[i][0] == how && (!name || !strcmp(argv[i] + 1, name))) return argv[i];
  return NULL;
}

static void choose(const Operation* list, int argc, char** argv) {
  bool only = chosen_word(argc, argv, NULL, '=');
  for (const Operation* one = list; one->name; one++) {
    bool on = only ? chosen_word(argc, argv, one->name, '=') || !strcmp(one->name, "map")
                   : (!one->off || chosen_word(argc, argv, one->name, '+')) &&
                         !chosen_word(argc, argv, one->name, '-');
    if (!on) continue;
    MUST(operations < kMostOperations);
    chosen[operations++] = *one;
    all_weights += one->weight;
  }
}

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(
        stderr,
        "usage: %s DIR SEED THREADS [+OPERATION|-OPERATION|=OPERATION]...\noperations (!: off unless named):",
        argv[0]);
    for (const Operation* one = layout_operations; one->name; one++)
      fprintf(stderr, " %s%s", one->name, one->off ? "!" : "");
    for (const Operation* one = write_operations; one->name; one++)
      fprintf(stderr, " %s%s", one->name, one->off ? "!" : "");
    fprintf(stderr, "\n");
    return 2;
  }
  program_dir = argv[1];
  seed_of_run = strtoull(argv[2], NULL, 0);
  threads = atoi(argv[3]);
  MUST(threads >= 1 && threads <= kMostThreads);
  choose(layout_operations, argc, argv);
  choose(write_operations, argc, argv);
  static const Case cases[] = {{"torture", prepare, check, false}, {NULL, NULL, NULL, false}};
  return program_main(2, argv, cases);
}
