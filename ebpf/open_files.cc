#include "ebpf/open_files.h"

#include <bpf/libbpf.h>
#include <fmt/format.h>

#include <algorithm>
#include <span>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // what bpftool writes
#include "ebpf/open_files.skel.h"
#pragma GCC diagnostic pop
#include "ebpf/libbpf_reason.h"
#include "ebpf/load_program.h"
#include "ebpf/open_files_record.h"
#include "ebpf/thread_iteration.h"

namespace godwit::ebpf {
namespace {

Error unsupported(const char* operation, pid_t tid, int err) {
  return ebpf::unsupported(
      operation, fmt::format("the open files of thread {}", tid), err,
      "shared memory is read in the freeze, and timerfds that are not set are waited for");
}

OpenFileFacts to_facts(const godwit_file_record& record) {
  OpenFileFacts facts{.fd = static_cast<int>(record.fd),
                      .inode = record.inode,
                      .writable_mappings = record.writable_mappings};
  if (record.timer_known != 0)
    facts.timer = {record.timer_queued != 0, record.timer_rings != 0, record.timer_ticks};
  return facts;
}

}  // namespace

struct OpenFiles::Loaded {
  pid_t tid = 0;
  Program<open_files_bpf> program{nullptr, nullptr};
  Link files;
  std::vector<std::byte> said;  // kept between reads for its room
};

OpenFiles::OpenFiles(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
OpenFiles::OpenFiles(OpenFiles&&) noexcept = default;
OpenFiles& OpenFiles::operator=(OpenFiles&&) noexcept = default;
OpenFiles::~OpenFiles() = default;

Result<OpenFiles> OpenFiles::create(pid_t tid) {
  hear_libbpf();
  auto loaded = std::make_unique<Loaded>();
  loaded->tid = tid;
  loaded->program = load_program<open_files_bpf>();
  if (!loaded->program) return unsupported("load a BPF iterator", tid, errno);
  loaded->files = attach_to_files(loaded->program->progs.read_open_file, tid);
  if (!loaded->files) return unsupported("attach a BPF iterator", tid, errno);
  OpenFiles files(std::move(loaded));
  TRY(files.read());  // the first iteration costs several times the later ones
  return files;
}

Result<std::vector<OpenFileFacts>> OpenFiles::read() {
  std::vector<std::byte>& said = loaded_->said;
  TRY(visit_files(loaded_->files, loaded_->tid, said));
  const std::span found(reinterpret_cast<const godwit_file_record*>(said.data()),
                        said.size() / sizeof(godwit_file_record));
  std::vector<OpenFileFacts> facts;
  facts.reserve(found.size());
  std::transform(found.begin(), found.end(), std::back_inserter(facts), to_facts);
  return facts;
}

const OpenFileFacts* find_facts(const std::vector<OpenFileFacts>& facts, int fd) {
  const auto found = std::lower_bound(facts.begin(), facts.end(), fd,
                                      [](const OpenFileFacts& f, int wanted) { return f.fd < wanted; });
  return found == facts.end() || found->fd != fd ? nullptr : &*found;
}

}  // namespace godwit::ebpf
