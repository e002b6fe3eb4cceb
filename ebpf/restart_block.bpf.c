/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a freeze interrupts, and when it would have ended, is nowhere else to be seen. Two programs, loaded by
 * restart_reader: one notes the timer that a thread gives up because a tracer stops it; the other, for each
 * thread that the iterator visits, tells task_struct->restart_block and that note.
 *
 * The kernel's structures are declared with the few fields that are used; the loader relocates every access
 * to the running kernel's own layout (CO-RE), so no kernel header is needed. */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ebpf/iter_task.bpf.h"
#include "ebpf/restart_record.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum timespec_type { TT_NONE };

struct timespec64 {
  long tv_sec;
  long tv_nsec;
};

struct restart_block {
  long (*fn)(struct restart_block*);
  union {
    struct {
      __u32* uaddr;
      __u32 val;
      __u32 flags;
      __u32 bitset;
      __u64 time;
      __u32* uaddr2;
    } futex;
    struct {
      int clockid;
      enum timespec_type type;
      union {
        void* rmtp;
      };
      __u64 expires;
    } nanosleep;
    struct {
      void* ufds;
      int nfds;
      int has_timeout;
      unsigned long tv_sec;
      unsigned long tv_nsec;
    } poll;
  };
};

/* Kernels after 6.18 keep the end of a poll as one timespec64. */
struct restart_block___end_time {
  union {
    struct {
      struct timespec64 end_time;
    } poll;
  };
};

struct upid {
  int nr;
};

struct pid {
  unsigned int level;
  struct upid numbers[1];
};

struct signal_struct;

struct task_struct {
  struct pid* thread_pid;
  struct restart_block restart_block;
  struct signal_struct* signal; /* one for all threads of a process */
  unsigned long jobctl;
};

struct hrtimer_clock_base {
  __s32 clockid;
};

struct hrtimer {
  __s64 _softexpires;
  struct hrtimer_clock_base* base;
};

/* On the stack of a thread that waits with a timeout. */
struct hrtimer_sleeper {
  struct hrtimer timer;
  struct task_struct* task;
};

#pragma clang attribute pop

/* The helpers used are for GPL-compatible programs only. */
char LICENSE[] SEC("license") = "GPL";

/* The number by which the reading process knows `task`: a pid has one in each namespace it is in, indexed by
 * depth. */
static __u32 number_for_reader(struct task_struct* task) {
  struct task_struct* reader = (struct task_struct*)bpf_get_current_task();
  const __u64 level = BPF_CORE_READ(reader, thread_pid, level);
  struct pid* pid = BPF_CORE_READ(task, thread_pid);
  __u32 number = 0;
  if (!pid) return 0;
  bpf_probe_read_kernel(
      &number, sizeof number,
      (char*)__builtin_preserve_access_index(&pid->numbers[0].nr) + level * bpf_core_type_size(struct upid));
  return number;
}

static void read_sleep(struct godwit_restart_record* record, struct restart_block* block) {
  record->sleep_expires = BPF_CORE_READ(block, nanosleep.expires);
  record->sleep_rmtp = (__u64)BPF_CORE_READ(block, nanosleep.rmtp);
  record->sleep_clock = BPF_CORE_READ(block, nanosleep.clockid);
  record->sleep_type = (__s32)BPF_CORE_READ(block, nanosleep.type);
}

static void read_futex(struct godwit_restart_record* record, struct restart_block* block) {
  record->futex_uaddr = (__u64)BPF_CORE_READ(block, futex.uaddr);
  record->futex_uaddr2 = (__u64)BPF_CORE_READ(block, futex.uaddr2);
  record->futex_time = BPF_CORE_READ(block, futex.time);
  record->futex_val = BPF_CORE_READ(block, futex.val);
  record->futex_flags = BPF_CORE_READ(block, futex.flags);
  record->futex_bitset = BPF_CORE_READ(block, futex.bitset);
}

static void read_poll(struct godwit_restart_record* record, struct restart_block* block) {
  record->poll_ufds = (__u64)BPF_CORE_READ(block, poll.ufds);
  record->poll_nfds = BPF_CORE_READ(block, poll.nfds);
  record->poll_has_timeout = BPF_CORE_READ(block, poll.has_timeout);
  struct restart_block___end_time* later = (void*)block;
  if (bpf_core_field_exists(later->poll.end_time)) {
    record->poll_sec = BPF_CORE_READ(later, poll.end_time.tv_sec);
    record->poll_nsec = BPF_CORE_READ(later, poll.end_time.tv_nsec);
  } else {
    record->poll_sec = BPF_CORE_READ(block, poll.tv_sec);
    record->poll_nsec = BPF_CORE_READ(block, poll.tv_nsec);
  }
}

/* linux/sched/jobctl.h, JOBCTL_TRAP_STOP: PTRACE_INTERRUPT (or a stop for all) was asked for. */
#define TRAP_STOP (1ul << 19)

/* The process whose threads are watched; the iterator visits no other. */
__u64 watched;

struct note {
  __u64 at;
  __u64 expires;
  __s32 clock;
  __u32 unused;
};

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __type(key, __u64); /* address of the task */
  __type(value, struct note);
  __uint(max_entries, 1024); /* the loader knows the number of threads */
} notes SEC(".maps");

/* KERNEL: a thread that leaves a timed sleep early cancels its timer itself, on its way out of the call. One
 * that a tracer's interrupt woke has that interrupt pending by then, and stops before it returns to the
 * program: so the note is of the very call in which it will be found. */
SEC("raw_tp/hrtimer_cancel")
int note_interrupted_sleep(struct bpf_raw_tracepoint_args* ctx) {
  struct task_struct* task = (struct task_struct*)bpf_get_current_task();
  struct hrtimer_sleeper* sleeper = (struct hrtimer_sleeper*)ctx->args[0];
  if ((__u64)BPF_CORE_READ(task, signal) != watched) return 0;
  if (!(BPF_CORE_READ(task, jobctl) & TRAP_STOP)) return 0;
  /* Of any other timer these bytes are something else, but never this thread. */
  if (BPF_CORE_READ(sleeper, task) != task) return 0;
  const __u64 key = (__u64)task;
  struct note note = {};
  note.at = bpf_ktime_get_ns();
  note.expires = BPF_CORE_READ(sleeper, timer._softexpires);
  note.clock = BPF_CORE_READ(sleeper, timer.base, clockid);
  bpf_map_update_elem(&notes, &key, &note, BPF_ANY);
  return 0;
}

static void read_note(struct godwit_restart_record* record, struct task_struct* task) {
  const __u64 key = (__u64)task;
  const struct note* note = bpf_map_lookup_elem(&notes, &key);
  if (!note) return;
  record->timer_at = note->at;
  record->timer_expires = note->expires;
  record->timer_clock = note->clock;
}

SEC("iter/task")
int read_restart_block(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;
  struct godwit_restart_record record = {};
  if (!task) return 0;
  struct restart_block* block = __builtin_preserve_access_index(&task->restart_block);
  watched = (__u64)BPF_CORE_READ(task, signal);
  record.tid = number_for_reader(task);
  record.fn = (__u64)BPF_CORE_READ(block, fn);
  read_sleep(&record, block);
  read_futex(&record, block);
  read_poll(&record, block);
  read_note(&record, task);
  bpf_seq_write(ctx->meta->seq, &record, sizeof record);
  return 0;
}
