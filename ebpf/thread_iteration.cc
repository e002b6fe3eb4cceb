#include "ebpf/thread_iteration.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <system_error>

#include "engine/base/fd.h"
#include "engine/base/units.h"

namespace godwit::ebpf {

void DestroyLink::operator()(bpf_link* link) const {
  ::bpf_link__destroy(link);
}

size_t count_threads(pid_t pid) {
  std::error_code ignored;
  const std::filesystem::directory_iterator tasks(fmt::format("/proc/{}/task", pid), ignored);
  return ignored ? 0 : static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

namespace {

// KERNEL: the iterator takes the number in the pid namespace of whoever makes the iteration, that is ours.
Link attach(bpf_program* visitor, bpf_iter_link_info info) {
  DECLARE_LIBBPF_OPTS(bpf_iter_attach_opts, options);
  options.link_info = &info;
  options.link_info_len = sizeof info;
  return Link(::bpf_program__attach_iter(visitor, &options));
}

Status visit(const Link& link, const std::string& subject, std::vector<std::byte>& said) {
  const Fd iteration(::bpf_iter_create(::bpf_link__fd(link.get())));
  if (!iteration.valid()) return fail_errno("create a BPF iteration", subject);
  said.resize(std::max<size_t>(said.capacity(), 16_KiB));
  size_t bytes = 0;
  for (;;) {
    if (bytes == said.size()) said.resize(said.size() * 2);
    const ssize_t got = ::read(iteration.get(), said.data() + bytes, said.size() - bytes);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) return fail_errno("read a BPF iteration", subject);
    if (got == 0) break;
    bytes += static_cast<size_t>(got);
  }
  said.resize(bytes);
  return {};
}

}  // namespace

Link attach_to_threads(bpf_program* visitor, pid_t pid) {
  bpf_iter_link_info info{};
  info.task.pid = static_cast<__u32>(pid);
  return attach(visitor, info);
}

Link attach_to_files(bpf_program* visitor, pid_t tid) {
  bpf_iter_link_info info{};
  info.task.tid = static_cast<__u32>(tid);
  return attach(visitor, info);
}

Status visit_threads(const Link& link, pid_t pid, std::vector<std::byte>& said) {
  return visit(link, fmt::format("the threads of pid {}", pid), said);
}

Status visit_files(const Link& link, pid_t tid, std::vector<std::byte>& said) {
  return visit(link, fmt::format("the open files of thread {}", tid), said);
}

}  // namespace godwit::ebpf
