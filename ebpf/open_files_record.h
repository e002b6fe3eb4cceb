/* What open_files.bpf.c writes for each descriptor, and open_files.cc reads. Both are built for the machine
 * they run on, so this never leaves the host. Of a file that is no timerfd the words on its timer are
 * anything. */
#pragma once

#include <linux/types.h>

struct godwit_file_record {
  __u32 fd;
  __s32 writable_mappings; /* address_space->i_mmap_writable */
  __u64 inode;             /* address of the inode: names it for shared_mappings.bpf.c */
  __u8 timer_known;        /* this kernel's timers look as we expect */
  __u8 timer_queued;
  __u8 timer_rings; /* its interrupt is being served */
  __u8 unused[5];
  __u64 timer_ticks;
};
