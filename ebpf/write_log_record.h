/* What write_log.bpf.c and write_log.cc share. */
#pragma once

#include <linux/types.h>

/* Entries of the ring; a power of two. An entry is the address of a write that was a page fault. */
#define GODWIT_WRITE_LOG_ENTRIES (1u << 18)

/* Why the log cannot vouch for all that was written. */
enum godwit_write_log_trip {
  GODWIT_TRIP_MMAP_LOCK, /* somebody else than a page fault reached into the address space */
  GODWIT_TRIP_MADVISE,
  GODWIT_TRIP_THREADS, /* more threads than the log has room for */
  GODWIT_TRIPS,
};
