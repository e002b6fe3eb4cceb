// Mappings made, grown, moved, shrunk, replaced, discarded and thrown away without pause while the process
// moves, each beside a model of what it must hold. Contents left over from an earlier mapping would show as a
// wrong page.
#include "program.h"

#include <pthread.h>

enum { kPage = 4096, kSlots = 48, kMostPages = 64, kThreads = 2 };

typedef struct {
  char* at;
  int pages;
  bool readonly;
  uint64_t seed[kMostPages];  // 0: must be zero
} Slot;

typedef struct {
  Slot slots[kSlots];
  uint64_t random, operations;
  char wrong[256];
} Churner;

static Churner churners[kThreads];

static uint64_t next(Churner* c) {
  return c->random = mix(c->random + 0x9e3779b97f4a7c15ULL);
}

static void complain(Churner* c, const char* what, const Slot* slot, int page) {
  if (!c->wrong[0])
    snprintf(c->wrong, sizeof c->wrong, "%s (%s): page %d of %d at %p, seed %lx, after %lu operations", what,
             strerror(errno), page, slot->pages, (void*)slot->at, slot->seed[page], c->operations);
}

static void verify_page(Churner* c, const Slot* slot, int page) {
  const char* at = slot->at + page * kPage;
  long where = slot->seed[page] ? differs(at, kPage, slot->seed[page]) : all_zero(at, kPage);
  if (where >= 0) complain(c, "wrong content", slot, page);
}

static void write_page(Churner* c, Slot* slot, int page) {
  if (slot->readonly) return;
  slot->seed[page] = next(c) | 1;
  fill(slot->at + page * kPage, kPage, slot->seed[page]);
}

static void map_slot(Churner* c, Slot* slot, char* where) {
  int pages = where ? slot->pages : 1 + (int)(next(c) % (kMostPages / 2));
  char* at = mmap(where, (size_t)pages * kPage, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | (where ? MAP_FIXED : 0), -1, 0);
  if (at == MAP_FAILED) return complain(c, "mmap", slot, 0);
  *slot = (Slot){.at = at, .pages = pages};
}

static void resize(Churner* c, Slot* slot) {
  int pages = 1 + (int)(next(c) % kMostPages);
  char* at = mremap(slot->at, (size_t)slot->pages * kPage, (size_t)pages * kPage, MREMAP_MAYMOVE);
  if (at == MAP_FAILED) return complain(c, "mremap", slot, 0);
  for (int i = slot->pages; i < pages; i++) slot->seed[i] = 0;
  slot->at = at;
  slot->pages = pages;
}

static void relocate(Churner* c, Slot* slot) {
  size_t bytes = (size_t)slot->pages * kPage;
  char* room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* at = mremap(slot->at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room);
  if (at != room) return complain(c, "mremap to a place", slot, 0);
  slot->at = at;
}

static void discard(Churner* c, Slot* slot) {
  int from = (int)(next(c) % (uint64_t)slot->pages),
      count = 1 + (int)(next(c) % (uint64_t)(slot->pages - from));
  if (madvise(slot->at + from * kPage, (size_t)count * kPage, MADV_DONTNEED))
    complain(c, "madvise", slot, from);
  for (int i = from; i < from + count; i++) slot->seed[i] = 0;
}

static void operate(Churner* c) {
  Slot* slot = &c->slots[next(c) % kSlots];
  c->operations++;
  if (!slot->at) return map_slot(c, slot, NULL);
  int page = (int)(next(c) % (uint64_t)slot->pages);
  switch (next(c) % 16) {
    case 0:
      munmap(slot->at, (size_t)slot->pages * kPage);
      slot->at = NULL;
      return;
    case 1:
      return resize(c, slot);
    case 2:
      return relocate(c, slot);
    case 3:
      return discard(c, slot);
    case 4:
      return map_slot(c, slot, slot->at);
    case 5:
      slot->readonly = !slot->readonly;
      mprotect(slot->at, (size_t)slot->pages * kPage, PROT_READ | (slot->readonly ? 0 : PROT_WRITE));
      return;
    case 6:
    case 7:
    case 8:
      return verify_page(c, slot, page);
    default:
      return write_page(c, slot, page);
  }
}

static pthread_mutex_t turn[kThreads];

static void* churn(void* argument) {
  Churner* c = argument;
  pthread_mutex_t* mine = &turn[c - churners];
  for (;;) {
    pthread_mutex_lock(mine);
    for (int i = 0; i < 50; i++) operate(c);
    pthread_mutex_unlock(mine);
    pause_ms(1);
  }
  return NULL;
}

static void prepare(void) {
  for (int i = 0; i < kThreads; i++) {
    churners[i].random = (uint64_t)i + 77;
    pthread_mutex_init(&turn[i], NULL);
    for (int n = 0; n < 2000; n++) operate(&churners[i]);
    pthread_t thread;
    MUST(!pthread_create(&thread, NULL, churn, &churners[i]));
  }
}

static const char* check(int round) {
  (void)round;
  for (int i = 0; i < kThreads; i++) {
    Churner* c = &churners[i];
    pthread_mutex_lock(&turn[i]);
    for (int s = 0; s < kSlots; s++)
      for (int page = 0; c->slots[s].at && page < c->slots[s].pages; page++)
        verify_page(c, &c->slots[s], page);
    pthread_mutex_unlock(&turn[i]);
    EXPECT(!c->wrong[0], "%s", c->wrong);
  }
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"churn", prepare, check, false}, {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
