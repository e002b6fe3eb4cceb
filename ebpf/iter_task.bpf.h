/* What the kernel hands to a program of its iterator over threads (SEC("iter/task")). For the .bpf.c files,
 * each of which declares the fields of task_struct that it reads. */
#pragma once

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file;
struct task_struct;

struct bpf_iter_meta {
  struct seq_file* seq;
};

struct bpf_iter__task {
  struct bpf_iter_meta* meta;
  struct task_struct* task;
};

#pragma clang attribute pop
