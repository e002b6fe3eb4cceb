// The torture's operations on contents: every way in which bytes come into memory, by the program itself or
// by the kernel on its behalf, and what changes an object behind its mappings.
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <sys/uio.h>

#include "torture.h"

#ifndef MADV_REMOVE
#define MADV_REMOVE 9
#endif

/// Bytes of an area that are about to be written, all of them writable.
typedef struct {
  Area* area;
  int page;         // the first that it touches
  size_t at, size;  // from the start of the area
} Place;

/// A random place; `unit` divides its start and size. False if the area found has none.
static bool choose_place(World* w, Place* place, size_t unit) {
  Area* area = place->area = any_area(w);
  if (!area) return false;
  size_t units = (size_t)area->pages * kPage / unit, most = 3 * kPage / unit;
  size_t first = next(w) % units;
  size_t count = 1 + next(w) % most;
  if (count > units - first) count = units - first;
  place->at = first * unit;
  place->size = count * unit;
  place->page = (int)(place->at / kPage);
  for (int i = place->page; (size_t)i * kPage < place->at + place->size; i++)
    if (area->state[i] & (kReadonly | kNoAccess | kGuard)) return false;
  return true;
}

/// What MADV_FREE may have taken by now is written whole first, so that every byte of it is known again.
static void make_sure(Place* place) {
  for (int i = place->page; (size_t)i * kPage < place->at + place->size; i++) {
    if (!(place->area->state[i] & kLazy)) continue;
    place->area->state[i] &= (uint8_t)~kLazy;
    memset(place->area->at + (size_t)i * kPage, i, kPage);
    memset(shadow_to_write(place->area, i), i, kPage);
  }
}

static void remember(Place* place, const char* bytes) {
  for (size_t done = 0; done < place->size;) {
    size_t at = place->at + done, in_page = at % kPage;
    size_t part = kPage - in_page < place->size - done ? kPage - in_page : place->size - done;
    memcpy(shadow_to_write(place->area, (int)(at / kPage)) + in_page, bytes + done, part);
    done += part;
  }
}

static void finish_write(World* w, Place* place, const char* bytes, bool written, const char* how) {
  if (!written) return broken(w, how, place->area, place->page);
  remember(place, bytes);
  verify(w, place->area, place->page, 4, how);
}

static int pages_of(const Place* place) {
  return (int)((place->at + place->size - 1) / kPage) - place->page + 1;
}

static void begin_write(World* w, Place* place, const char* how) {
  note(w, how, place->area, place->page, pages_of(place));
  make_sure(place);
}

// ---- by the program itself
static void store(World* w) {
  Place place;
  if (!choose_place(w, &place, 1)) return;
  begin_write(w, &place, "store");
  char bytes[3 * kPage];
  for (size_t i = 0; i < place.size; i++) bytes[i] = (char)next(w);
  memcpy(place.area->at + place.at, bytes, place.size);
  finish_write(w, &place, bytes, true, "store");
}

/// Whole pages full of one random word, or of zeros.
static void flood(World* w) {
  Place place;
  if (!choose_place(w, &place, kPage)) return;
  begin_write(w, &place, "flood");
  char bytes[3 * kPage];
  if (below(w, 4))
    fill(bytes, place.size, next(w));
  else
    memset(bytes, 0, place.size);
  memcpy(place.area->at + place.at, bytes, place.size);
  finish_write(w, &place, bytes, true, "flood");
}

/// A few bytes in each of many pages: what deltas are for.
static void sprinkle(World* w) {
  Area* area = any_area(w);
  if (!area) return;
  note(w, "sprinkle", area, 0, area->pages);
  for (int i = below(w, 8); i < area->pages; i += 1 + below(w, 8)) {
    if (area->state[i] & (kReadonly | kNoAccess | kGuard | kLazy)) continue;
    int at = below(w, kPage);
    char byte = (char)next(w);
    area->at[(size_t)i * kPage + (size_t)at] = byte;
    shadow_to_write(area, i)[at] = byte;
  }
}

// ---- by the kernel
static void read_file(World* w) {
  Place place;
  if (!choose_place(w, &place, 1)) return;
  begin_write(w, &place, "read(2)");
  int fd = open(torture_path("pattern"), O_RDONLY | O_CLOEXEC), from = below(w, kPatternBytes - 3 * kPage);
  ssize_t got = pread(fd, place.area->at + place.at, place.size, from);
  close(fd);
  finish_write(w, &place, torture_pattern + from, got == (ssize_t)place.size, "read(2)");
}

static void read_direct(World* w) {
  Place place;
  if (!choose_place(w, &place, 512)) return;
  begin_write(w, &place, "O_DIRECT");
  int fd = open(torture_path("pattern"), O_RDONLY | O_CLOEXEC | O_DIRECT),
      from = below(w, kPatternBytes / kPage - 3) * kPage;
  if (fd < 0 && errno == EINVAL) return;  // a file system without it
  ssize_t got = pread(fd, place.area->at + place.at, place.size, from);
  close(fd);
  finish_write(w, &place, torture_pattern + from, got == (ssize_t)place.size, "O_DIRECT");
}

static void read_pipe(World* w) {
  Place place;
  if (!choose_place(w, &place, 1)) return;
  begin_write(w, &place, "readv from a pipe");
  int ends[2], from = below(w, kPatternBytes - 3 * kPage);
  if (pipe2(ends, O_CLOEXEC)) return broken(w, "pipe", place.area, place.page);
  size_t half = place.size / 2;
  struct iovec parts[2] = {{place.area->at + place.at, half},
                           {place.area->at + place.at + half, place.size - half}};
  bool done = write(ends[1], torture_pattern + from, place.size) == (ssize_t)place.size &&
              readv(ends[0], parts, 2) == (ssize_t)place.size;
  close(ends[0]);
  close(ends[1]);
  finish_write(w, &place, torture_pattern + from, done, "readv from a pipe");
}

static void write_process(World* w) {
  Place place;
  if (!choose_place(w, &place, 1)) return;
  begin_write(w, &place, "process_vm_writev");
  int from = below(w, kPatternBytes - 3 * kPage);
  struct iovec ours = {torture_pattern + from, place.size}, theirs = {place.area->at + place.at, place.size};
  bool done = process_vm_writev(getpid(), &ours, 1, &theirs, 1, 0) == (ssize_t)place.size;
  finish_write(w, &place, torture_pattern + from, done, "process_vm_writev");
}

// ---- by an io_uring that lives for a few requests
typedef struct {
  int fd;
  struct io_uring_params p;
  char *rings, *entries;
  size_t rings_size, entries_size;
} Ring;

static unsigned* ring_word(Ring* ring, unsigned offset) {
  return (unsigned*)(void*)(ring->rings + offset);
}

static bool ring_open(Ring* ring) {
  *ring = (Ring){0};
  ring->fd = (int)syscall(SYS_io_uring_setup, 4, &ring->p);
  if (ring->fd < 0) return false;
  size_t sq = ring->p.sq_off.array + ring->p.sq_entries * 4,
         cq = ring->p.cq_off.cqes + ring->p.cq_entries * sizeof(struct io_uring_cqe);
  ring->rings_size = sq > cq ? sq : cq;
  ring->entries_size = ring->p.sq_entries * sizeof(struct io_uring_sqe);
  ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                     IORING_OFF_SQ_RING);
  ring->entries = mmap(NULL, ring->entries_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                       IORING_OFF_SQES);
  return ring->rings != MAP_FAILED && ring->entries != MAP_FAILED;
}

static void ring_close(Ring* ring) {
  munmap(ring->rings, ring->rings_size);
  munmap(ring->entries, ring->entries_size);
  close(ring->fd);
}

/// One request, and its result.
static int ring_read(Ring* ring, int opcode, int fd, void* to, size_t size, int from) {
  struct io_uring_sqe* entry = (struct io_uring_sqe*)(void*)ring->entries;
  memset(entry, 0, sizeof *entry);
  entry->opcode = (uint8_t)opcode;
  entry->fd = fd;
  entry->addr = (uintptr_t)to;
  entry->len = (unsigned)size;
  entry->off = (uint64_t)from;
  unsigned tail = *ring_word(ring, ring->p.sq_off.tail);
  ring_word(ring, ring->p.sq_off.array)[tail & (ring->p.sq_entries - 1)] = 0;
  __atomic_store_n(ring_word(ring, ring->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
  int entered;
  do entered = (int)syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
  while (entered < 0 && errno == EINTR);
  unsigned *head = ring_word(ring, ring->p.cq_off.head), at = *head;
  while (__atomic_load_n(ring_word(ring, ring->p.cq_off.tail), __ATOMIC_ACQUIRE) == at)
    syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
  struct io_uring_cqe* answers = (struct io_uring_cqe*)(void*)(ring->rings + ring->p.cq_off.cqes);
  int result = answers[at & (ring->p.cq_entries - 1)].res;
  __atomic_store_n(head, at + 1, __ATOMIC_RELEASE);
  return result;
}

/// KERNEL: a page of shared memory that was only read so far is not marked as written when a ring pins it,
/// and READ_FIXED does not mark it either: MADV_PAGEOUT then throws away what came (6.18, with nobody
/// watching).
static void dirty(const Place* place) {
  for (size_t at = place->at; at < place->at + place->size; at += kPage - at % kPage) {
    volatile char* byte = place->area->at + at;
    *byte = *byte;
  }
}

/// The same place is read to several times; registered, its pages stay pinned, and no page table tells of it.
static void read_ring(World* w) {
  Place place;
  Ring ring;
  if (!choose_place(w, &place, 512)) return;
  if (!ring_open(&ring)) return broken(w, "io_uring", place.area, place.page);
  bool registered = below(w, 2);
  begin_write(w, &place, registered ? "READ_FIXED" : "io_uring READ");
  if (registered) dirty(&place);
  struct iovec buffer = {place.area->at + place.at, place.size};
  if (registered && syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1))
    registered = false;
  int fd = open(torture_path("pattern"), O_RDONLY | O_CLOEXEC | (below(w, 2) ? O_DIRECT : 0)), from = 0,
      got = 0;
  for (int i = 0; i < 8; i++) {
    from = below(w, kPatternBytes / kPage - 3) * kPage;
    got = ring_read(&ring, registered ? IORING_OP_READ_FIXED : IORING_OP_READ, fd, buffer.iov_base,
                    buffer.iov_len, from);
    if (got != (int)place.size) break;
    if (registered) pause_ms(below(w, 3));
  }
  close(fd);
  ring_close(&ring);
  errno = got < 0 ? -got : EIO;
  finish_write(w, &place, torture_pattern + from, got == (int)place.size,
               registered ? "READ_FIXED" : "io_uring READ");
}

// ---- behind the mappings
static Object* any_object(World* w) {
  Object* object = &w->objects[below(w, kObjects)];
  return object->kind ? object : NULL;
}

/// For the log: an area that shows the object, if there is one.
static void note_object(World* w, const char* what, const Object* object, int page, int count) {
  for (int i = 0; i < kSlots; i++)
    if (w->slots[i].at && w->slots[i].object == object)
      return note(w, what, &w->slots[i], page - w->slots[i].first, count);
}

static void verify_object(World* w, Object* object, const char* when) {
  for (int i = 0; i < kSlots; i++)
    if (w->slots[i].at && w->slots[i].object == object) verify(w, &w->slots[i], 0, w->slots[i].pages, when);
}

static void write_by_fd(World* w) {
  Object* object = any_object(w);
  if (!object || object->fd < 0) return;
  int size = 1 + below(w, 2 * kPage), at = below(w, object->pages * kPage),
      from = below(w, kPatternBytes - 3 * kPage);
  if (size > object->pages * kPage - at) size = object->pages * kPage - at;
  note_object(w, "pwrite by fd", object, at / kPage, size / kPage + 2);
  if (pwrite(object->fd, torture_pattern + from, (size_t)size, at) != size)
    return broken(w, "pwrite by fd", &w->slots[0], 0);
  memcpy(object->shadow + at, torture_pattern + from, (size_t)size);
  verify_object(w, object, "pwrite by fd");
}

static void punch(World* w) {
  Object* object = any_object(w);
  if (!object || object->fd < 0) return;
  int from = below(w, object->pages), count = 1 + below(w, object->pages - from);
  note_object(w, "punch hole", object, from, count);
  if (fallocate(object->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from * kPage,
                (off_t)count * kPage))
    return;
  memset(object->shadow + (size_t)from * kPage, 0, (size_t)count * kPage);
  verify_object(w, object, "punch hole");
}

static void remove_pages(World* w) {
  Area* area = any_area(w);
  if (!area || !area->shared || area->locked || area->kind == kFile || !is_uniform(area)) return;
  int from = below(w, area->pages), count = 1 + below(w, area->pages - from);
  note(w, "MADV_REMOVE", area, from, count);
  if (madvise(area->at + (size_t)from * kPage, (size_t)count * kPage, MADV_REMOVE))
    return broken(w, "MADV_REMOVE", area, from);
  memset(area->object->shadow + (size_t)(area->first + from) * kPage, 0, (size_t)count * kPage);
  verify_object(w, area->object, "MADV_REMOVE");
}

/// Never below what is mapped: beyond the end there is only SIGBUS.
static void truncate_object(World* w) {
  Object* object = any_object(w);
  if (!object || object->kind != kMemfd) return;
  int least = 1;
  for (int i = 0; i < kSlots; i++) {
    const Area* area = &w->slots[i];
    if (area->at && area->object == object && area->first + area->pages > least)
      least = area->first + area->pages;
  }
  int pages = least + below(w, kObjectPages - least + 1);
  note_object(w, "ftruncate", object, 0, pages);
  if (ftruncate(object->fd, (off_t)pages * kPage)) return broken(w, "ftruncate", &w->slots[0], 0);
  if (pages < object->pages)
    memset(object->shadow + (size_t)pages * kPage, 0, (size_t)(object->pages - pages) * kPage);
  object->pages = pages;
}

/// By descriptor, what no mapping shows.
static void read_by_fd(World* w) {
  Object* object = any_object(w);
  if (!object || object->fd < 0) return;
  char page[kPage];
  for (int i = 0; i < object->pages; i++) {
    bool same = pread(object->fd, page, kPage, (off_t)i * kPage) == kPage &&
                !memcmp(page, object->shadow + (size_t)i * kPage, kPage);
    errno = 0;
    if (!same) return broken(w, "an object read by its descriptor differs", &w->slots[kBig], i);
  }
}

const Operation write_operations[] = {{"store", 16, store, false},
                                      {"flood", 10, flood, false},
                                      {"sprinkle", 8, sprinkle, false},
                                      {"read", 5, read_file, false},
                                      {"direct", 2, read_direct, false},
                                      {"pipe", 3, read_pipe, false},
                                      {"process_vm", 3, write_process, false},
                                      {"ring", 1, read_ring, false},
                                      {"by_fd", 5, write_by_fd, false},
                                      {"punch", 2, punch, false},
                                      {"remove", 2, remove_pages, false},
                                      {"truncate", 2, truncate_object, false},
                                      {"read_fd", 2, read_by_fd, false},
                                      {NULL, 0, NULL, false}};
