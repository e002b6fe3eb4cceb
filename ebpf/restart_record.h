/* What restart_block.bpf.c writes for each thread, and restart_reader reads: task_struct->restart_block as it
 * is, and the timer that the thread gave up last because a tracer stopped it. Both are built for the machine
 * they run on, so this never leaves the host. The three kinds lie in one union in the kernel: only the one
 * that `fn` names means anything. */
#pragma once

#include <linux/types.h>

struct godwit_restart_record {
  __u32 tid; /* as seen in the pid namespace of who reads */
  __u32 unused;
  __u64 fn;
  __u64 sleep_expires; /* absolute, nanoseconds of sleep_clock */
  __u64 sleep_rmtp;
  __s32 sleep_clock;
  __s32 sleep_type; /* enum timespec_type: 0 no rmtp, 1 native, 2 compat */
  __u64 futex_uaddr;
  __u64 futex_uaddr2;
  __u64 futex_time; /* absolute, nanoseconds */
  __u32 futex_val;
  __u32 futex_flags;
  __u32 futex_bitset;
  __s32 poll_nfds;
  __u64 poll_ufds;
  __u64 poll_sec; /* absolute, CLOCK_MONOTONIC */
  __u64 poll_nsec;
  __s32 poll_has_timeout;
  __s32 timer_clock;
  __u64 timer_at;      /* CLOCK_MONOTONIC; 0: it gave up none */
  __u64 timer_expires; /* absolute, nanoseconds of timer_clock */
};
