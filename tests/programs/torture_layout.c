// The torture's operations on the layout: what makes, moves, splits, protects, discards and forks memory.
#include <signal.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "torture.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
enum { kGuardInstall = 102, kGuardRemove = 103, kMlockOnFault = 1, kRoomPages = 128, kFloorPages = 64 };

static size_t bytes_of(int pages) {
  return (size_t)pages * kPage;
}

// ---- objects
static bool make_object(World* w, Object* object) {
  object->kind = (Kind)(kFile + below(w, 3));
  object->pages = 1 + below(w, kObjectPages);
  // A file that shrank under a mapping which the move is just about to learn is gone would end the move.
  if (object->kind == kFile) object->pages = kObjectPages;
  object->areas = 0;
  object->fd = -1;
  memset(object->shadow, 0, bytes_of(kObjectPages));
  if (object->kind == kShared) return true;
  char name[64];
  snprintf(name, sizeof name, "file.%d.%d", w->index, (int)(object - w->objects));
  object->fd = object->kind == kMemfd ? memfd_create("torture", MFD_CLOEXEC)
                                      : open(torture_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (object->fd < 0 || ftruncate(object->fd, (off_t)bytes_of(object->pages))) return false;
  // Half of it has contents from the start: what no mapping ever touched.
  size_t half = bytes_of(object->pages) / 2 / 8 * 8;
  uint64_t seed = next(w);
  fill(object->shadow, half, seed);
  if (object->kind == kFile) {  // whatever an earlier run of this slot left
    return pwrite(object->fd, object->shadow, bytes_of(object->pages), 0) == (ssize_t)bytes_of(object->pages);
  }
  return pwrite(object->fd, object->shadow, half, 0) == (ssize_t)half;
}

static void release(Area* area) {
  Object* object = area->object;
  area->at = NULL;
  area->object = NULL;
  if (!object || --object->areas > 0) return;
  if (object->fd >= 0) close(object->fd);
  object->kind = kAnon;
}

// ---- a new area
static void begin_area(World* w, Area* area, Kind kind, int pages) {
  area->kind = kind;
  area->pages = pages;
  area->object = NULL;
  area->first = 0;
  area->shared = area->locked = area->cut = false;
  area->id = w->next_id++;
  memset(area->state, 0, (size_t)area->capacity);
}

static void map_anonymous(World* w, Area* area, int pages, char* where) {
  begin_area(w, area, kAnon, pages);
  char* at = mmap(where, bytes_of(pages), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | (where ? MAP_FIXED : 0), -1, 0);
  if (at == MAP_FAILED) return broken(w, "mmap", area, 0);
  area->at = at;
}

/// Of an object that is there, or of a new one. `pages` at most.
static void map_object(World* w, Area* area, int pages, char* where) {
  Object* object = &w->objects[below(w, kObjects)];
  begin_area(w, area, kFile, pages);
  if (!object->kind) {
    if (!make_object(w, object)) return broken(w, "an object", area, 0);
    if (object->kind == kShared) object->pages = pages;
  } else if (object->kind == kShared) {
    return map_anonymous(w, area, pages, where);  // no descriptor leads to it: see twin()
  }
  if (where && object->pages < pages) return map_anonymous(w, area, pages, where);
  area->pages = pages = pages < object->pages ? pages : object->pages;
  area->first = below(w, object->pages - pages + 1);
  area->kind = object->kind;
  area->shared = object->kind == kShared || below(w, 2);
  int flags = (area->shared ? MAP_SHARED : MAP_PRIVATE) | (where ? MAP_FIXED : 0) |
              (object->kind == kShared ? MAP_ANONYMOUS : 0);
  char* at =
      mmap(where, bytes_of(pages), PROT_READ | PROT_WRITE, flags, object->fd, (off_t)bytes_of(area->first));
  if (at == MAP_FAILED) return broken(w, "mmap of an object", area, 0);
  area->object = object;
  object->areas++;
  area->at = at;
}

/// Aligned to huge pages, in a room of its own.
static void map_big(World* w, Area* area) {
  enum { kHuge = 2 << 20 };
  bool hugetlb = below(w, 2);
  begin_area(w, area, hugetlb ? kHugetlb : kThp, kBigPages);
  if (hugetlb) {
    char* at = mmap(NULL, bytes_of(kBigPages), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (at != MAP_FAILED) {
      area->at = at;
      return;
    }
    area->kind = kThp;  // this machine has none set aside
  }
  char* room =
      mmap(NULL, bytes_of(kBigPages) + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return broken(w, "mmap", area, 0);
  char *at = (char*)(((uintptr_t)room + kHuge - 1) & ~(uintptr_t)(kHuge - 1)),
       *end = at + bytes_of(kBigPages);
  if (at > room) munmap(room, (size_t)(at - room));
  if (room + bytes_of(kBigPages) + kHuge > end)
    munmap(end, (size_t)(room + bytes_of(kBigPages) + kHuge - end));
  if (madvise(at, bytes_of(kBigPages), MADV_HUGEPAGE)) return broken(w, "MADV_HUGEPAGE", area, 0);
  area->at = at;
}

/// KERNEL: a growing area needs 256 pages of room below it, unless what is there is inaccessible; and
/// nobody's mmap is placed so near below it.
static void map_growing(World* w, Area* area) {
  begin_area(w, area, kGrowing, 2);
  char* room =
      mmap(NULL, bytes_of(kRoomPages), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return broken(w, "mmap", area, 0);
  char* at = mmap(room + bytes_of(kRoomPages - 2), bytes_of(2), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
  // ORDER: the growing area first; then nobody else takes what is given back.
  if (at == MAP_FAILED || munmap(room + bytes_of(kFloorPages), bytes_of(kRoomPages - kFloorPages - 2)))
    return broken(w, "a growing area", area, 0);
  area->at = at;
}

static void map_heap(World* w, Area* area) {
  begin_area(w, area, kHeap, 4);
  char* end = sbrk(0);
  char* at = (char*)(((uintptr_t)end + kPage - 1) & ~(uintptr_t)(kPage - 1));
  if (brk(at + bytes_of(area->pages))) return broken(w, "brk", area, 0);
  area->at = at;
}

void map_new(World* w) {
  int kind = below(w, 12);
  Area* area = free_slot(w, kind == 0);
  if (!area) return;
  bool heap = w->index == 0;
  for (int i = 0; i < kSlots; i++) heap = heap && (!w->slots[i].at || w->slots[i].kind != kHeap);
  if (kind == 0)
    map_big(w, area);
  else if (kind == 1 && heap)
    map_heap(w, area);
  else if (kind == 2)
    map_growing(w, area);
  else if (kind < 7)
    map_object(w, area, 1 + below(w, kSmallPages / 2), NULL);
  else
    map_anonymous(w, area, 1 + below(w, kSmallPages / 2), NULL);
  note(w, "map", area, 0, area->pages);
}

// ---- areas split and thrown away
static bool is_plain(const Area* area) {
  return !is_big(area) && area->kind != kGrowing && area->kind != kHeap;
}

static void unmap(World* w) {
  Area* area = any_area(w);
  if (!area || area->kind == kHeap) return;
  verify(w, area, 0, area->pages, "before munmap");
  note(w, "munmap", area, 0, area->pages);
  int below_it = area->kind == kGrowing ? kRoomPages - area->pages : 0;
  if (munmap(area->at - bytes_of(below_it), bytes_of(below_it + area->pages))) broken(w, "munmap", area, 0);
  release(area);
}

/// Pages from `from` on become an area of their own.
static Area* split(World* w, Area* area, int from) {
  Area* tail = free_slot(w, false);
  if (!tail) return NULL;
  begin_area(w, tail, area->kind, area->pages - from);
  tail->object = area->object;
  tail->first = area->first + from;
  tail->shared = area->shared;
  tail->locked = area->locked;
  tail->cut = area->cut;
  if (tail->object) tail->object->areas++;
  memcpy(tail->state, area->state + from, (size_t)tail->pages);
  memcpy(tail->shadow, area->shadow + bytes_of(from), bytes_of(tail->pages));
  memcpy(tail->before, area->before + bytes_of(from), bytes_of(tail->pages));
  tail->at = area->at + bytes_of(from);
  area->pages = from;
  return tail;
}

/// A part in the middle goes; another area may take its place at once.
static void replace(World* w) {
  Area* area = any_area(w);
  if (!area || !is_plain(area)) return;
  int from = below(w, area->pages), count = 1 + below(w, area->pages - from);
  note(w, "replace", area, from, count);
  if (from + count < area->pages && !split(w, area, from + count)) return;
  Area* middle = from ? split(w, area, from) : area;
  if (!middle) return;
  char* where = middle->at;
  bool gap = below(w, 3) == 0;
  if (gap && munmap(where, bytes_of(count))) broken(w, "munmap", middle, 0);
  release(middle);
  if (gap) return;
  if (below(w, 2))
    map_object(w, middle, count, where);
  else
    map_anonymous(w, middle, count, where);
  note(w, "replaced by", middle, 0, count);
}

// ---- areas moved
static void resize(World* w) {
  Area* area = any_area(w);
  if (!area || !is_plain(area) || !is_uniform(area)) return;
  int most = area->object ? area->object->pages - area->first : area->capacity;
  most = most < area->capacity ? most : area->capacity;
  int pages = 1 + below(w, most);
  note(w, "mremap to", area, 0, pages);
  char* at = mremap(area->at, bytes_of(area->pages), bytes_of(pages), MREMAP_MAYMOVE);
  if (at == MAP_FAILED && area->cut && errno == EFAULT) return;
  if (at == MAP_FAILED) return broken(w, "mremap", area, 0);
  for (int i = area->pages; i < pages; i++) area->state[i] = 0;
  // A known gap: what grew between two rounds the destination maps from two open files, and so in two areas.
  area->cut = area->cut || (area->kind == kFile && pages > area->pages);
  area->at = at;
  area->pages = pages;
  note(w, "mremap", area, 0, pages);
}

/// `more`: MREMAP_DONTUNMAP keeps the old place from other threads.
static bool carry(World* w, Area* area, char* where, int more) {
  size_t bytes = bytes_of(area->pages);
  char* at = mremap(area->at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | more, where);
  if (at != where) {
    broken(w, "mremap to a place", area, 0);
    return false;
  }
  area->at = at;
  return true;
}

/// KERNEL: since 6.17 mremap moves several mappings at once, but may stop after some (a tracked one behind
/// one that is not): so only what is surely one.
static void relocate(World* w) {
  Area* area = any_area(w);
  if (!area || !is_plain(area) || !is_uniform(area) || area->cut) return;
  char* room = mmap(NULL, bytes_of(area->pages), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  note(w, "mremap from", area, 0, area->pages);
  carry(w, area, room, 0);
  note(w, "relocate", area, 0, area->pages);
}

/// Two areas exchange their places: nothing in the layout tells of it when they are of one kind.
static void swap(World* w) {
  Area *a = any_area(w), *b = any_area(w);
  if (!a || !b || a == b || a->pages != b->pages || !is_plain(a) || !is_plain(b) || !is_uniform(a) ||
      !is_uniform(b))
    return;
  if (a->cut || b->cut || a->locked || b->locked) return;
  char *room = mmap(NULL, bytes_of(a->pages), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *left = a->at,
       *right = b->at;
  if (room == MAP_FAILED) return;
  if (carry(w, a, room, MREMAP_DONTUNMAP) && carry(w, b, left, MREMAP_DONTUNMAP)) carry(w, a, right, 0);
  note(w, "swap", a, 0, a->pages);
  w->operations++;
  note(w, "swap", b, 0, b->pages);
}

/// The pages go elsewhere, the area stays without them.
static void leave_behind(World* w) {
  Area *area = any_area(w), *other = free_slot(w, false);
  if (!area || !other || area->object || !is_plain(area) || !is_uniform(area) || area->locked || area->cut)
    return;
  char* at = (char*)syscall(SYS_mremap, area->at, bytes_of(area->pages), bytes_of(area->pages),
                            MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
  note(w, "left behind", area, 0, area->pages);
  if (at == MAP_FAILED) return broken(w, "MREMAP_DONTUNMAP", area, 0);
  begin_area(w, other, area->kind, area->pages);
  memcpy(other->state, area->state, (size_t)area->pages);
  memcpy(other->shadow, area->shadow, bytes_of(area->pages));
  memset(area->state, 0, (size_t)area->pages);
  other->at = at;
}

/// KERNEL: mremap of no bytes makes a second mapping of what is shared.
static void twin(World* w) {
  Area *area = any_area(w), *other = free_slot(w, false);
  if (!area || !other || !area->shared || area->cut || !is_uniform(area)) return;
  char* at = mremap(area->at, 0, bytes_of(area->pages), MREMAP_MAYMOVE);
  if (at == MAP_FAILED) return broken(w, "mremap of no bytes", area, 0);
  begin_area(w, other, area->kind, area->pages);
  other->object = area->object;
  other->object->areas++;
  other->first = area->first;
  other->shared = true;
  other->locked = area->locked;
  other->at = at;
  note(w, "twin", other, 0, other->pages);
}

// ---- protections and advice
static void protect(World* w) {
  static const int protections[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};
  static const uint8_t marks[] = {kReadonly, kNoAccess, 0, 0};
  Area* area = any_area(w);
  if (!area || area->kind == kGrowing) return;
  bool all = below(w, 2);
  area->cut = area->cut || !all;
  int unit = unit_of(area), from = all ? 0 : below(w, area->pages / unit) * unit,
      count = all ? area->pages : (1 + below(w, (area->pages - from) / unit)) * unit, how = below(w, 4);
  note(w, "mprotect", area, from, count);
  if (mprotect(area->at + bytes_of(from), bytes_of(count), protections[how]))
    return broken(w, "mprotect", area, from);
  for (int i = from; i < from + count; i++)
    area->state[i] = (uint8_t)((area->state[i] & ~(kReadonly | kNoAccess)) | marks[how]);
}

/// A part of a random area; for huge pages of whole ones. False if there is none that may be discarded.
static bool some_part(World* w, Area** area, int* from, int* count) {
  Area* found = *area = any_area(w);
  if (!found || found->locked) return false;
  int unit = unit_of(found);
  *from = below(w, found->pages / unit) * unit;
  *count = (1 + below(w, (found->pages - *from) / unit)) * unit;
  return true;
}

static void discard(World* w) {
  Area* area;
  int from, count;
  if (!some_part(w, &area, &from, &count)) return;
  note(w, "MADV_DONTNEED", area, from, count);
  if (madvise(area->at + bytes_of(from), bytes_of(count), MADV_DONTNEED))
    return broken(w, "MADV_DONTNEED", area, from);
  for (int i = from; i < from + count; i++) area->state[i] &= (uint8_t) ~(kOwn | kLazy);
  // A look maps it again: a clean page stands where there was one of its own.
  if (below(w, 2)) verify(w, area, from, count, "after MADV_DONTNEED");
}

static void let_go(World* w) {
  Area* area;
  int from, count;
  if (!some_part(w, &area, &from, &count) || area->object || area->kind == kHugetlb) return;
  note(w, "MADV_FREE", area, from, count);
  if (madvise(area->at + bytes_of(from), bytes_of(count), MADV_FREE))
    return broken(w, "MADV_FREE", area, from);
  for (int i = from; i < from + count; i++)
    if (area->state[i] & kOwn) area->state[i] |= kLazy;
}

static void advise(World* w) {
  static const int advice[] = {MADV_COLD,           MADV_PAGEOUT,  MADV_WILLNEED,   MADV_POPULATE_READ,
                               MADV_POPULATE_WRITE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE,
                               MADV_SEQUENTIAL,     MADV_RANDOM,   MADV_NORMAL,     MADV_DONTDUMP,
                               MADV_DODUMP};
  Area* area;
  int from, count, which = below(w, sizeof advice / sizeof *advice);
  if (!some_part(w, &area, &from, &count)) return;
  if (advice[which] == MADV_POPULATE_WRITE && area->object && !area->shared)
    return;  // would copy what the object holds
  // Flags of a part split the area for good.
  bool part = advice[which] == MADV_COLD || advice[which] == MADV_PAGEOUT || advice[which] == MADV_WILLNEED;
  if (!part) from = 0, count = area->pages;
  note(w, "madvise", area, from, count);
  (void)madvise(area->at + bytes_of(from), bytes_of(count), advice[which]);
}

static void lock(World* w) {
  Area* area = any_area(w);
  if (!area || !is_uniform(area) || is_big(area) || area->kind == kGrowing) return;
  bool on_fault = below(w, 2) || (area->object && !area->shared);  // or it would copy what the object holds
  note(w, area->locked ? "munlock" : "mlock", area, 0, area->pages);
  if (area->locked)
    area->locked = munlock(area->at, bytes_of(area->pages)) != 0;
  else
    area->locked = syscall(SYS_mlock2, area->at, bytes_of(area->pages), on_fault ? kMlockOnFault : 0) == 0;
}

static void guard(World* w) {
  Area* area;
  int from, count;
  if (!some_part(w, &area, &from, &count) || area->kind != kAnon) return;
  bool install = below(w, 2);
  note(w, install ? "guard" : "unguard", area, from, count);
  if (madvise(area->at + bytes_of(from), bytes_of(count), install ? kGuardInstall : kGuardRemove))
    return;  // an older kernel
  for (int i = from; i < from + count; i++) {
    if (install)
      area->state[i] = (uint8_t)((area->state[i] & ~(kOwn | kLazy)) | kGuard);
    else
      area->state[i] &= (uint8_t)~kGuard;
  }
}

// ---- what grows by itself
static void grow(World* w) {
  for (int i = kBig; i < kSlots; i++) {
    Area* area = &w->slots[i];
    if (!area->at || (area->kind != kGrowing && area->kind != kHeap)) continue;
    int more = 1 + below(w, 6);
    note(w, "grow", area, 0, area->pages);
    if (area->kind == kHeap) {
      bool shrinks = area->pages > 30 || (area->pages > 8 && below(w, 3) == 0);
      int pages = shrinks ? 4 + below(w, 4) : area->pages + more;
      if (brk(area->at + bytes_of(pages))) return broken(w, "brk", area, 0);
      for (int p = area->pages; p < pages; p++) area->state[p] = 0;
      area->pages = pages;
    } else if (area->pages + more <= area->capacity) {
      memmove(area->state + more, area->state, (size_t)area->pages);
      memmove(area->shadow + bytes_of(more), area->shadow, bytes_of(area->pages));
      memset(area->state, 0, (size_t)more);
      area->at -= bytes_of(more);
      area->pages += more;
      *(volatile char*)area->at;  // a fault at the lowest page: the kernel makes the whole gap the area's
      *(volatile char*)area->at = 0;
    }
    verify(w, area, 0, area->pages, "after it grew");
  }
}

static __attribute__((noinline)) int deep(int levels, uint64_t seed) {
  volatile uint64_t frame[256];
  for (int i = 0; i < 256; i++) frame[i] = mix(seed + (uint64_t)levels * 256 + (uint64_t)i);
  int below_it = levels ? deep(levels - 1, seed) : 0;
  for (int i = 0; i < 256; i++)
    if (frame[i] != mix(seed + (uint64_t)levels * 256 + (uint64_t)i)) return -1;
  return below_it < 0 ? -1 : levels;
}

void grow_stack(int round) {
  if (deep(20 + round * 16 % 1000, (uint64_t)round) < 0) abort();
}

static void recurse(World* w) {
  if (deep(below(w, 100), next(w)) < 0) broken(w, "a stack", &w->slots[0], 0);
}

// ---- children
/// A child that dirties its copies and writes to what it shares, while its parent writes too.
static void fork_child(World* w) {
  Area *mine = any_area(w), *common = any_area(w);
  bool shared = common && common->shared && !(common->state[0] & (kReadonly | kNoAccess));
  bool private = mine && mine != common && !mine->shared && is_uniform(mine);
  uint64_t seed = next(w);
  char* page = shared ? common->object->shadow + bytes_of(common->first) : NULL;
  if (private) note(w, "fork", mine, 0, mine->pages);
  pid_t child = fork();
  if (child == 0) {
    signal(SIGBUS, SIG_DFL);  // nothing is reserved for a child: there may be no huge page for its copy
    for (int i = 0; private && i < mine->pages; i++) mine->at[bytes_of(i)] ^= 0x55;
    if (shared) fill(common->at, kPage, seed);
    _exit(0);
  }
  if (child < 0) return;
  if (private)
    for (int i = 0; i < mine->pages; i += 3) {
      mine->state[i] &= (uint8_t)~kLazy;
      shadow_to_write(mine, i);
      fill(mine->shadow + bytes_of(i), kPage, seed + (uint64_t)i);
      fill(mine->at + bytes_of(i), kPage, seed + (uint64_t)i);
    }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (shared && status == 0) fill(page, kPage, seed);
  if (private) verify(w, mine, 0, mine->pages, "after a child");
}

/// A child that writes to its parent, as a debugger or a profiler does.
static void child_writes(World* w) {
  Area* area = any_area(w);
  if (!area || !is_uniform(area)) return;
  int page = below(w, area->pages);
  uint64_t seed = next(w);
  static __thread char bytes[kPage];
  fill(bytes, kPage, seed);
  char* at = area->at + bytes_of(page);
  note(w, "process_vm_writev by a child", area, page, 1);
  pid_t child = fork();
  if (child == 0) {
    struct iovec ours = {bytes, kPage}, theirs = {at, kPage};
    _exit(process_vm_writev(getppid(), &ours, 1, &theirs, 1, 0) == kPage ? 0 : 1);
  }
  if (child < 0) return;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) return broken(w, "process_vm_writev by a child", area, page);
  if (!area->shared) area->state[page] &= (uint8_t)~kLazy;
  fill(shadow_to_write(area, page), kPage, seed);
  verify(w, area, page, 1, "process_vm_writev by a child");
}

const Operation layout_operations[] = {{"map", 10, map_new, false},
                                       {"unmap", 5, unmap, false},
                                       {"replace", 5, replace, false},
                                       {"resize", 5, resize, false},
                                       {"relocate", 4, relocate, false},
                                       {"swap", 4, swap, false},
                                       {"leave", 2, leave_behind, false},
                                       {"twin", 3, twin, false},
                                       {"protect", 6, protect, false},
                                       {"discard", 6, discard, false},
                                       {"free", 3, let_go, false},
                                       {"advise", 4, advise, false},
                                       {"lock", 2, lock, false},
                                       {"guard", 3, guard, false},
                                       {"grow", 3, grow, false},
                                       {"stack", 1, recurse, false},
                                       {"fork", 1, fork_child, false},
                                       {"child_vm", 1, child_writes, false},
                                       {NULL, 0, NULL, false}};
