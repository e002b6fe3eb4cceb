#include "ebpf/restart_reader.h"

#include <bpf/libbpf.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // what bpftool writes
#include "ebpf/restart_block.skel.h"
#pragma GCC diagnostic pop
#include "ebpf/libbpf_reason.h"
#include "ebpf/load_program.h"
#include "ebpf/restart_record.h"
#include "ebpf/thread_iteration.h"
#include "engine/base/files.h"
#include "engine/base/log.h"

namespace godwit::ebpf {
namespace {

constexpr std::array<std::pair<std::string_view, RestartKind>, 6> kNames{{
    {"do_no_restart_syscall", RestartKind::kNone},
    {"hrtimer_nanosleep_restart", RestartKind::kNanosleep},
    {"posix_cpu_nsleep_restart", RestartKind::kCpuNanosleep},
    {"alarm_timer_nsleep_restart", RestartKind::kAlarmNanosleep},
    {"futex_wait_restart", RestartKind::kFutexWait},
    {"do_restart_poll", RestartKind::kPoll},
}};

using Names = std::map<uint64_t, RestartKind>;

/// What address each restart function has; empty where the kernel hides its addresses (all zero).
Names read_names() {
  Names names;
  const Result<std::string> symbols = read_file("/proc/kallsyms");
  if (!symbols.ok()) return names;
  std::string_view text = *&symbols.value();
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);  // address type name [module]
    text.remove_prefix(std::min(end + 1, text.size()));
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.size() < space + 4) continue;
    const std::string_view name = line.substr(space + 3);
    const auto known =
        std::find_if(kNames.begin(), kNames.end(), [&](const auto& k) { return k.first == name; });
    const auto address = parse_number(line.substr(0, space), 16);
    if (known != kNames.end() && address && *address != 0) names[*address] = known->second;
  }
  return names;
}

Error unsupported(const char* operation, pid_t pid, int err) {
  return ebpf::unsupported(operation, fmt::format("the threads of pid {}", pid), err,
                           "interrupted sleeps, futex waits and polls begin their time anew");
}

RestartBlock to_block(const godwit_restart_record& record, const Names& names) {
  RestartBlock block;
  block.tid = static_cast<pid_t>(record.tid);
  block.function = record.fn;
  const auto name = names.find(record.fn);
  block.kind = name == names.end() ? RestartKind::kUnnamed : name->second;
  block.nanosleep = {record.sleep_clock, record.sleep_type, Nanos(record.sleep_expires),
                     RemoteAddr(record.sleep_rmtp)};
  block.futex = {RemoteAddr(record.futex_uaddr),
                 record.futex_val,
                 record.futex_flags,
                 record.futex_bitset,
                 Nanos(record.futex_time),
                 RemoteAddr(record.futex_uaddr2)};
  block.poll.ufds = RemoteAddr(record.poll_ufds);
  block.poll.count = record.poll_nfds;
  if (record.poll_has_timeout != 0) {
    // Of another kind these words are anything: no overflow, whatever they are.
    block.poll.end = Nanos(static_cast<int64_t>(record.poll_sec * 1'000'000'000 + record.poll_nsec));
  }
  if (record.timer_at != 0)
    block.timer = {Nanos(record.timer_at), record.timer_clock, Nanos(record.timer_expires)};
  return block;
}

/// The loaded programs. Notes are kept for as many threads as there are, with room for those to come.
Program<restart_block_bpf> load(pid_t pid) {
  return load_program<restart_block_bpf>([pid](restart_block_bpf& program) {
    ::bpf_map__set_max_entries(program.maps.notes, static_cast<__u32>(1024 + 2 * count_threads(pid)));
  });
}

}  // namespace

struct RestartReader::Loaded {
  pid_t pid = 0;
  Names names;
  Program<restart_block_bpf> program{nullptr, nullptr};
  Link threads;
  Link notes;
  std::vector<std::byte> said;  // kept between reads for its room
};

RestartReader::RestartReader(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
RestartReader::RestartReader(RestartReader&&) noexcept = default;
RestartReader& RestartReader::operator=(RestartReader&&) noexcept = default;
RestartReader::~RestartReader() = default;

Result<RestartReader> RestartReader::create(pid_t pid) {
  hear_libbpf();
  auto loaded = std::make_unique<Loaded>();
  loaded->pid = pid;
  loaded->program = load(pid);
  if (!loaded->program) return unsupported("load a BPF iterator", pid, errno);
  loaded->threads = attach_to_threads(loaded->program->progs.read_restart_block, pid);
  if (!loaded->threads) return unsupported("attach a BPF iterator", pid, errno);
  loaded->names = read_names();
  RestartReader reader(std::move(loaded));
  // The first iteration costs eight times the later ones; and it tells the other program whom to watch.
  TRY(reader.read(std::span(&pid, 1)));
  Loaded& all = *reader.loaded_;
  all.notes.reset(::bpf_program__attach(all.program->progs.note_interrupted_sleep));
  if (!all.notes)
    log_debug("no timers of interrupted calls: {}",
              unsupported("attach to hrtimer_cancel", pid, errno).message());
  return reader;
}

Result<std::vector<RestartBlock>> RestartReader::read(std::span<const pid_t> tids) {
  std::vector<std::byte>& said = loaded_->said;
  TRY(visit_threads(loaded_->threads, loaded_->pid, said));
  const std::span found(reinterpret_cast<godwit_restart_record*>(said.data()),
                        said.size() / sizeof(godwit_restart_record));
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.tid < b.tid; });
  std::vector<RestartBlock> blocks;
  blocks.reserve(tids.size());
  for (const pid_t tid : tids) {
    const auto record = std::lower_bound(found.begin(), found.end(), static_cast<__u32>(tid),
                                         [](const auto& r, __u32 wanted) { return r.tid < wanted; });
    if (record == found.end() || record->tid != static_cast<__u32>(tid)) {
      return fail(ErrorKind::kTargetGone, "read the restart block",
                  fmt::format("tid {} of pid {}", tid, loaded_->pid));
    }
    blocks.push_back(to_block(*record, loaded_->names));
  }
  return blocks;
}

}  // namespace godwit::ebpf
