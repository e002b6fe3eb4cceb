// The torture: random operations on a program's own memory, each beside a shadow of what every byte must be.
// torture.c holds the shadow and the rounds, torture_layout.c what changes mappings, torture_write.c what
// writes to them.
#pragma once

#include "program.h"

#include <pthread.h>

enum {
  kPage = 4096,
  kSlots = 26,
  kBig = 2,
  kSmallPages = 48,
  kBigPages = 1024,
  kObjects = 6,
  kObjectPages = 64,
  kLog = 256
};
enum { kPatternBytes = 1 << 20 };

typedef enum { kAnon, kThp, kHugetlb, kGrowing, kHeap, kFile, kMemfd, kShared, kKinds } Kind;

/// Something that several mappings show: a file, a memfd, shared anonymous memory.
typedef struct {
  Kind kind;  // kFile, kMemfd, kShared; kAnon: none
  int fd;     // -1: only its mappings lead to it
  int pages, areas;
  char* shadow;
} Object;

/// Of a page.
enum { kOwn = 1, kReadonly = 2, kNoAccess = 4, kLazy = 8, kGuard = 16 };

/// One mapping, or a part of one; mapped in one go, so that the kernel holds it as one where its pages agree.
typedef struct {
  char* at;  // NULL: the slot is free
  int pages, capacity;
  Kind kind;
  Object* object;
  int first;  // page of the object
  bool shared, locked;
  bool cut;  // a part once had another protection: the kernel may never take the parts together again
  unsigned id;
  uint8_t* state;  // by page; without kOwn a page shows its object, or zeros
  char* shadow;
  char* before;  // each own page as it was before the last write: an old version is told from a wrong one
} Area;

typedef struct {
  uint64_t number;
  int64_t at_ms;
  const char* operation;
  unsigned area;
  char* address;
  int page, count;
} Entry;

typedef struct {
  Area slots[kSlots];
  Object objects[kObjects];
  uint64_t random, operations;
  unsigned next_id;
  int index;
  Entry log[kLog];
  char wrong[8192];
  pthread_mutex_t turn;
  pthread_t thread;
} World;

typedef struct {
  const char* name;
  int weight;
  void (*run)(World*);
  bool off;  // only when named with +
} Operation;

extern const Operation layout_operations[], write_operations[];
extern char torture_pattern[kPatternBytes];  // what DIR/pattern holds

/// DIR/name. Valid until the next call on this thread.
const char* torture_path(const char* name);
uint64_t next(World* w);
/// 0 .. limit - 1
int below(World* w, int limit);
void note(World* w, const char* operation, const Area* area, int page, int count);
/// A call that must not fail did.
void broken(World* w, const char* what, const Area* area, int page);
void verify(World* w, Area* area, int page, int count, const char* when);

Area* any_area(World* w);
Area* free_slot(World* w, bool big);
/// Which bytes a page must hold.
const char* expected(const Area* area, int page);
/// Where the shadow of a page is kept that is about to be written.
char* shadow_to_write(Area* area, int page);
bool is_anonymous(const Area* area);
bool is_uniform(const Area* area);
bool is_big(const Area* area);
/// In how many pages at once it is protected and discarded.
int unit_of(const Area* area);

/// The layout's side, for the first areas and for the end of all.
void map_new(World* w);
void grow_stack(int round);
