/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Counts the shared mappings that anybody makes of certain files. Loaded by shared_mappings.cc.
 *
 * A mapping that was made and is gone again leaves no trace in the kernel: it has to be seen in the making.
 * There is one call that makes the first one of a file, mmap; all others (fork, mremap) begin from one that
 * is there. At its beginning the descriptor tells the file; but another thread may give that number to
 * another file during the call. At its end the mapping itself tells; but another thread may have replaced
 * that, or hold its lock: then it is taken for one of any file that the process has open. */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct inode;

struct file {
  struct inode* f_inode;
};

struct fdtable {
  unsigned int max_fds;
  struct file** fd;
};

struct files_struct {
  struct fdtable* fdt;
};

struct vm_area_struct {
  struct file* vm_file;
};

struct thread_info {
  unsigned int status;
};

struct task_struct {
  struct thread_info thread_info;
  struct files_struct* files;
};

struct pt_regs___x86 {
  unsigned long r10, r8, ax, si, di, orig_ax;
};

#pragma clang attribute pop

char LICENSE[] SEC("license") = "GPL";

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __type(key, __u64);   /* address of the inode */
  __type(value, __u64); /* shared mappings made of it */
  __uint(max_entries, 16384);
} watched SEC(".maps");

__u64 untold; /* mappings of files that may be any */

/* asm/unistd_64.h and unistd_32.h */
#define MMAP 9
#define MMAP_32 90
#define MMAP2_32 192
#define X32 0x40000000ul
/* asm/thread_info.h: the call under way is a 32-bit one */
#define TS_COMPAT 2u
/* linux/mman.h */
#define MAP_SHARED 1
#define MAP_ANONYMOUS 0x20
#define MAX_ERRNO 4095ul

struct call {
  int hides_file; /* its arguments lie in memory, where they may change */
  unsigned long flags, fd;
};

/* Whether it is mmap. */
static int look_at(struct call* call, const struct pt_regs___x86* regs, unsigned long nr) {
  const struct task_struct* task = bpf_get_current_task_btf();
  if ((nr & ~X32) != MMAP && nr != MMAP_32 && nr != MMAP2_32) return 0;
  if (task->thread_info.status & TS_COMPAT) {
    call->hides_file = nr == MMAP_32;
    call->flags = BPF_CORE_READ(regs, si);
    call->fd = BPF_CORE_READ(regs, di);
    return nr == MMAP_32 || nr == MMAP2_32;
  }
  call->flags = BPF_CORE_READ(regs, r10);
  call->fd = BPF_CORE_READ(regs, r8);
  return (nr & ~X32) == MMAP;
}

static struct fdtable* own_table(void) {
  struct task_struct* task = bpf_get_current_task_btf();
  return BPF_CORE_READ(task, files, fdt);
}

static __u64 inode_behind(unsigned int fd) {
  struct fdtable* table = own_table();
  struct file** files = BPF_CORE_READ(table, fd);
  struct file* file = 0;
  if (fd >= BPF_CORE_READ(table, max_fds)) return 0;
  bpf_probe_read_kernel(&file, sizeof file, files + fd);
  return (__u64)BPF_CORE_READ(file, f_inode);
}

static int is_shared_file(const struct call* call) {
  /* MAP_SHARED_VALIDATE has that bit, too. */
  return call->hides_file || (!(call->flags & MAP_ANONYMOUS) && (call->flags & MAP_SHARED));
}

static void count_mapping_of(__u64 inode) {
  __u64* count = bpf_map_lookup_elem(&watched, &inode);
  if (count) __sync_fetch_and_add(count, 1);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(call_begin, struct pt_regs___x86* regs, long nr) {
  struct call call = {};
  if (look_at(&call, regs, (unsigned long)nr) && is_shared_file(&call) && !call.hides_file)
    count_mapping_of(inode_behind((unsigned int)call.fd));
  return 0;
}

static long look_at_descriptor(__u32 fd, void* unused) {
  const __u64 inode = inode_behind(fd);
  if (inode) count_mapping_of(inode);
  return 0;
}

/* The mapping may be of any of them. */
#define MOST_DESCRIPTORS 4096
static void count_all_open(void) {
  const __u32 room = BPF_CORE_READ(own_table(), max_fds);
  if (room > MOST_DESCRIPTORS || bpf_loop(room, look_at_descriptor, 0, 0) < 0)
    __sync_fetch_and_add(&untold, 1);
}

static long look_at_area(struct task_struct* task, struct vm_area_struct* area, void* unused) {
  count_mapping_of((__u64)BPF_CORE_READ(area, vm_file, f_inode));
  return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(call_end, struct pt_regs___x86* regs, long result) {
  struct call call = {};
  if (!look_at(&call, regs, BPF_CORE_READ(regs, orig_ax)) || !is_shared_file(&call)) return 0;
  if ((unsigned long)result >= -MAX_ERRNO) return 0;
  /* Nothing there any more, or somebody else has the lock. */
  if (bpf_find_vma(bpf_get_current_task_btf(), (__u64)result, look_at_area, 0, 0)) count_all_open();
  return 0;
}
