// A BPF program that visits the threads of one process, or the open files of one thread. For the loaders of
// this folder.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/base/result.h"

struct bpf_link;
struct bpf_program;

namespace godwit::ebpf {

struct DestroyLink {
  void operator()(bpf_link* link) const;
};
using Link = std::unique_ptr<bpf_link, DestroyLink>;

/// 0 when there is no such process.
size_t count_threads(pid_t pid);

/// Lets `visitor` (SEC("iter/task")) visit the threads of `pid`, a number of this process's pid namespace,
/// and no other; nullptr, and the reason in errno, where that is not permitted.
Link attach_to_threads(bpf_program* visitor, pid_t pid);

/// One visit of each thread; what the program wrote meanwhile replaces `said`, whose room is used again.
/// Errors: System.
Status visit_threads(const Link& link, pid_t pid, std::vector<std::byte>& said);

/// The same for a visitor SEC("iter/task_file") and the descriptors of thread `tid`.
Link attach_to_files(bpf_program* visitor, pid_t tid);
Status visit_files(const Link& link, pid_t tid, std::vector<std::byte>& said);

}  // namespace godwit::ebpf
