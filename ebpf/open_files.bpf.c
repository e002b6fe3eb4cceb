/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the kernel knows of the open files of a process, and tells nobody: who could write to a file through a
 * mapping, and whether a timerfd that reads as unset is about to ring. Loaded by open_files.cc.
 *
 * The kernel's structures are declared with the few fields that are used; the loader relocates every access
 * to the running kernel's own layout (CO-RE). */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ebpf/iter_task.bpf.h"
#include "ebpf/open_files_record.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
  int counter;
} atomic_t;

struct address_space {
  atomic_t i_mmap_writable;
};

struct inode {
  struct address_space* i_mapping;
};

struct file {
  struct inode* f_inode;
  void* private_data;
};

struct bpf_iter__task_file {
  struct bpf_iter_meta* meta;
  struct task_struct* task;
  __u32 fd;
  struct file* file;
};

struct hrtimer;

struct hrtimer_clock_base {
  struct hrtimer* running;
};

struct hrtimer {
  struct hrtimer_clock_base* base;
  __u8 state;
};

struct alarm {
  struct hrtimer timer;
};

/* fs/timerfd.c */
struct timerfd_ctx {
  union {
    struct hrtimer tmr;
    struct alarm alarm;
  } t;
  __u64 ticks;
  int clockid;
};

#pragma clang attribute pop

/* The helpers used are for GPL-compatible programs only. */
char LICENSE[] SEC("license") = "GPL";

/* linux/time.h */
#define CLOCK_REALTIME_ALARM 8
#define CLOCK_BOOTTIME_ALARM 9

/* linux/hrtimer.h, HRTIMER_STATE_ENQUEUED */
#define QUEUED 1

/* ORDER: as the kernel writes them: a timer that comes due is marked as running, then leaves its queue, then
 * counts its tick, then no longer runs. Read in this order, one of the three shows it at any instant. */
static void read_timer(struct godwit_file_record* record, struct timerfd_ctx* context) {
  const int clock = BPF_CORE_READ(context, clockid);
  struct hrtimer* timer = clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM
                              ? __builtin_preserve_access_index(&context->t.alarm.timer)
                              : __builtin_preserve_access_index(&context->t.tmr);
  if (!bpf_core_field_exists(timer->state) || !bpf_core_field_exists(timer->base->running)) return;
  record->timer_known = 1;
  record->timer_queued = (BPF_CORE_READ(timer, state) & QUEUED) != 0;
  record->timer_rings = BPF_CORE_READ(timer, base, running) == timer;
  record->timer_ticks = BPF_CORE_READ(context, ticks);
}

SEC("iter/task_file")
int read_open_file(struct bpf_iter__task_file* ctx) {
  struct file* file = ctx->file;
  struct godwit_file_record record = {};
  if (!file) return 0;
  record.fd = ctx->fd;
  record.inode = (__u64)BPF_CORE_READ(file, f_inode);
  record.writable_mappings = BPF_CORE_READ(file, f_inode, i_mapping, i_mmap_writable.counter);
  read_timer(&record, BPF_CORE_READ(file, private_data));
  bpf_seq_write(ctx->meta->seq, &record, sizeof record);
  return 0;
}
