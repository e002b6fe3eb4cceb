#include "ebpf/shared_mappings.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // what bpftool writes
#include "ebpf/shared_mappings.skel.h"
#pragma GCC diagnostic pop
#include "ebpf/libbpf_reason.h"
#include "ebpf/load_program.h"
#include "ebpf/thread_iteration.h"

namespace godwit::ebpf {
namespace {

Error unsupported(const char* operation, int err) {
  return ebpf::unsupported(operation, "shared mappings", err, "the freeze reads all shared memory");
}

}  // namespace

struct SharedMappings::Loaded {
  Program<shared_mappings_bpf> program{nullptr, nullptr};
  std::vector<Link> links;
};

SharedMappings::SharedMappings(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
SharedMappings::SharedMappings(SharedMappings&&) noexcept = default;
SharedMappings& SharedMappings::operator=(SharedMappings&&) noexcept = default;
SharedMappings::~SharedMappings() = default;

Result<SharedMappings> SharedMappings::create() {
  hear_libbpf();
  auto loaded = std::make_unique<Loaded>();
  loaded->program = load_program<shared_mappings_bpf>();
  if (!loaded->program) return unsupported("load a BPF program", errno);
  for (bpf_program* one : {loaded->program->progs.call_begin, loaded->program->progs.call_end}) {
    loaded->links.emplace_back(::bpf_program__attach(one));
    if (!loaded->links.back()) return unsupported(::bpf_program__name(one), errno);
  }
  return SharedMappings(std::move(loaded));
}

Status SharedMappings::watch(uint64_t inode) {
  const __u64 key = inode;
  const __u64 none = 0;
  if (::bpf_map_update_elem(::bpf_map__fd(loaded_->program->maps.watched), &key, &none, BPF_NOEXIST) == 0 ||
      errno == EEXIST)
    return {};
  return fail_errno("watch the mappings of a file", fmt::format("inode at {:#x}", inode));
}

Result<uint64_t> SharedMappings::count(uint64_t inode) const {
  const __u64 key = inode;
  __u64 made = 0;
  if (::bpf_map_lookup_elem(::bpf_map__fd(loaded_->program->maps.watched), &key, &made) == 0) return made;
  return fail_errno("count the mappings of a file", fmt::format("inode at {:#x}", inode));
}

Result<uint64_t> SharedMappings::count_untold() const {
  const shared_mappings_bpf& program = *loaded_->program;
  uint64_t made = __atomic_load_n(&program.bss->untold, __ATOMIC_ACQUIRE);
  // KERNEL: a program that is met while it runs on the same processor is skipped, and counted.
  for (const bpf_program* one : {program.progs.call_begin, program.progs.call_end}) {
    bpf_prog_info info{};
    __u32 size = sizeof info;
    if (::bpf_obj_get_info_by_fd(::bpf_program__fd(one), &info, &size) != 0)
      return fail_errno("ask for BPF statistics", ::bpf_program__name(one));
    made += info.recursion_misses;
  }
  return made;
}

}  // namespace godwit::ebpf
