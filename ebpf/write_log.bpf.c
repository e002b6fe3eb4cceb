/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where one address space may have been written, told by those who write. Loaded by write_log.cc;
 * why the log misses nothing, or knows when it might, stands in docs/decisions/write-log.md. */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ebpf/iter_task.bpf.h"
#include "ebpf/write_log_record.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct mm_struct;

struct thread_info {
  unsigned int status;
};

struct task_struct {
  struct thread_info thread_info;
  struct mm_struct* mm;
  int pagefault_disabled;
};

struct pt_regs___x86 {
  unsigned long orig_ax;
};

#pragma clang attribute pop

char LICENSE[] SEC("license") = "GPL";

/* Addresses of mm_structs: of the process that is watched, and of the engine, which reaches into it, but
 * tells of its own writes. Set by the iterator. */
__u64 watched;
__u64 engine;

__u64 head; /* entries ever written; the next goes to head % GODWIT_WRITE_LOG_ENTRIES */
__u64 trips[GODWIT_TRIPS];

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, __u64);
  __uint(max_entries, GODWIT_WRITE_LOG_ENTRIES);
} ring SEC(".maps");

/* The last write fault of each thread: any earlier one of the same thread has been served. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __type(key, __u64); /* address of the task */
  __type(value, __u64);
  __uint(max_entries, 16384);
} last SEC(".maps");

/* Of each thread that met a fault in the kernel: how far the fault is with its lock. */
enum { NO_FAULT, WANTS_LOCK, HAS_LOCK };
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __type(key, __u64); /* address of the task */
  __type(value, __u32);
  __uint(max_entries, 16384);
} serving SEC(".maps");

static __u64 current_mm(void) {
  return (__u64)bpf_get_current_task_btf()->mm;
}

static void trip(int why) {
  __sync_fetch_and_add(&trips[why], 1);
}

/* asm/trap_pf.h */
#define PF_WRITE 2ul

static int note_fault(unsigned long address, unsigned long error) {
  /* No page of a program lies in the upper half. */
  if (!(error & PF_WRITE) || (long)address < 0 || current_mm() != watched) return 0;
  const __u64 entry = address;
  /* ORDER: the thread's last fault before the ring: whoever reads the head and then the map knows of this
   * fault one way or the other. */
  const __u64 thread = bpf_get_current_task();
  if (bpf_map_update_elem(&last, &thread, &entry, BPF_ANY)) trip(GODWIT_TRIP_THREADS);
  const __u32 slot = __sync_fetch_and_add(&head, 1) % GODWIT_WRITE_LOG_ENTRIES;
  __u64* place = bpf_map_lookup_elem(&ring, &slot);
  if (place) *(volatile __u64*)place = entry;
  return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(user_fault, unsigned long address, void* regs, unsigned long error) {
  return note_fault(address, error);
}

/* KERNEL: a fault in the kernel (copy_to_user) takes the lock of the whole address space once, whatever it is
 * for, unless faults are disabled; then none. */
SEC("tp_btf/page_fault_kernel")
int BPF_PROG(kernel_fault, unsigned long address, void* regs, unsigned long error) {
  struct task_struct* task = bpf_get_current_task_btf();
  const __u64 thread = (__u64)task;
  const __u32 wants = WANTS_LOCK;
  if ((__u64)task->mm != watched || (long)address < 0) return 0;
  /* Read directly: bpf_probe_read_kernel would itself disable faults. */
  if (!task->pagefault_disabled && bpf_map_update_elem(&serving, &thread, &wants, BPF_ANY))
    trip(GODWIT_TRIP_THREADS);
  return note_fault(address, error);
}

/* Whether this is the lock, or unlock, of a fault that was heard. */
static int is_of_fault(__u32 before, __u32 after) {
  const __u64 thread = bpf_get_current_task();
  __u32* stage = bpf_map_lookup_elem(&serving, &thread);
  if (!stage || *stage != before) return 0;
  *stage = after;
  return 1;
}

/* KERNEL: a fault in the program takes the lock of its area. Whoever else takes that of the whole address
 * space changes the layout, or writes to it without a fault (get_user_pages). The beginning tells of those
 * still at it when the process is frozen, the end of those that had begun before anybody watched. */
static int note_lock(struct mm_struct* mm, __u32 before, __u32 after) {
  if ((__u64)mm != watched || current_mm() == engine) return 0;
  if (!is_of_fault(before, after)) trip(GODWIT_TRIP_MMAP_LOCK);
  return 0;
}

SEC("tp_btf/mmap_lock_start_locking")
int BPF_PROG(lock_begin, struct mm_struct* mm) {
  return note_lock(mm, WANTS_LOCK, HAS_LOCK);
}

SEC("tp_btf/mmap_lock_released")
int BPF_PROG(lock_end, struct mm_struct* mm) {
  return note_lock(mm, HAS_LOCK, NO_FAULT);
}

/* asm/unistd_64.h and unistd_32.h; 219 of a 64-bit call is restart_syscall, which ends every sleep that a
 * stop interrupted. */
#define MADVISE 28
#define MADVISE_32 219
#define PROCESS_MADVISE 440
/* asm/thread_info.h: the call under way is a 32-bit one */
#define TS_COMPAT 2u

static int is_madvise(unsigned long nr) {
  const struct task_struct* task = bpf_get_current_task_btf();
  return nr == (task->thread_info.status & TS_COMPAT ? MADVISE_32 : MADVISE);
}

/* KERNEL: madvise may discard pages under the lock of an area alone (6.17). Its end is what counts: a call
 * that was under way when this was attached is seen too, and a frozen thread has ended its call. */
SEC("tp_btf/sys_exit")
int BPF_PROG(call_end, struct pt_regs___x86* regs) {
  const unsigned long nr = BPF_CORE_READ(regs, orig_ax);
  if (nr == PROCESS_MADVISE) trip(GODWIT_TRIP_MADVISE);
  if (is_madvise(nr) && current_mm() == watched) trip(GODWIT_TRIP_MADVISE);
  return 0;
}

SEC("iter/task")
int learn(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;
  if (!task) return 0;
  watched = (__u64)BPF_CORE_READ(task, mm);
  engine = current_mm();
  return 0;
}
