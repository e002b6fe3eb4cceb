#include "engine/state/address_space.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>

#include "engine/base/fd.h"
#include "engine/base/files.h"
#include "engine/base/missing_uapi.h"
#include "engine/state/foreign_path.h"
#include "engine/state/memory_objects.h"
#include "engine/state/process_rooms.h"
#include "engine/wire/rooms_memory.pb.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace godwit::state {
namespace {

using tracee::Batch;
using Kind = LayoutStep::Kind;

// ---- mappings
// ----------------------------------------------------------------------------------------------------

std::string describe(const Vma& vma) {
  return fmt::format("{} {}", vma.range, vma.path);
}

/// KERNEL: where the process itself may not write to hugetlbfs, nobody may (no FOLL_FORCE): its private
/// mappings get their protection when the last page is there.
bool is_protected_last(const Vma& vma) {
  return vma.huge_page != 0 && !vma.shared;
}

int map_flags(const Vma& vma) {
  int flags = MAP_FIXED_NOREPLACE | (vma.shared ? MAP_SHARED : MAP_PRIVATE);
  if (vma.kind == VmaKind::kAnonymous) flags |= MAP_ANONYMOUS;
  if (vma.kind == VmaKind::kAnonymous && vma.huge_page != 0) flags |= MAP_HUGETLB | MAP_HUGE_2MB;
  if (vma.has_flag("gd")) flags |= MAP_GROWSDOWN;
  if (vma.has_flag("nr")) flags |= MAP_NORESERVE;
  return flags;
}

/// A descriptor of the shell (this thread shares its table) for the file or object behind `vma`; `opened` if
/// it has to be closed after the mapping.
Result<int> backing(BuildContext& context, const Vma& vma, bool& opened) {
  opened = false;
  if (vma.kind == VmaKind::kAnonymous) return -1;
  if (shows_object(vma)) {
    const auto object = context.objects.find(object_key(vma.device, vma.inode));
    if (object == context.objects.end())
      return fail(ErrorKind::kCorrupt, "map a shared memory object", describe(vma),
                  "the stream never announced it");
    TRY(fit_object(context, object->first, vma.offset + vma.range.size()));
    return object->second.fd;
  }
  const bool writable = vma.shared && (vma.has_flag("mw") || (vma.prot & PROT_WRITE) != 0);
  const int fd = TRY(open_foreign_file(vma.path, writable, "open a mapped file")).release();
  opened = true;
  return fd;
}

void advise(Batch& batch, const Vma& vma, std::string_view had) {
  struct Advice {
    std::string_view flag;
    int set, clear;
  };
  constexpr Advice kAdvices[] = {
      {"dc", MADV_DONTFORK, MADV_DOFORK},       {"dd", MADV_DONTDUMP, MADV_DODUMP},
      {"mg", MADV_MERGEABLE, MADV_UNMERGEABLE}, {"hg", MADV_HUGEPAGE, MADV_NOHUGEPAGE},
      {"nh", MADV_NOHUGEPAGE, MADV_HUGEPAGE},   {"sr", MADV_SEQUENTIAL, MADV_NORMAL},
      {"rr", MADV_RANDOM, MADV_NORMAL},         {"wf", MADV_WIPEONFORK, MADV_KEEPONFORK},
  };
  const auto call = [&](int advice) {
    batch.call_may_fail(SYS_madvise, {vma.range.start, vma.range.size(), advice}, "madvise " + describe(vma));
  };
  for (const Advice& a : kAdvices) {
    const bool want = vma.has_flag(a.flag);
    const bool have = had.find(a.flag) != std::string_view::npos;
    if (have && !want) call(a.clear);
    if (want && !have) call(a.set);
  }
}

/// KERNEL: private memory that was ever writable stays charged (VM_ACCOUNT), and only areas that agree in it
/// are merged. So what can only be read by now is writable first, as it was at the source.
int first_protection(const Vma& vma) {
  if (is_protected_last(vma)) return PROT_READ | PROT_WRITE;
  const bool was_writable = vma.kind == VmaKind::kAnonymous && !vma.shared && (vma.prot & PROT_READ) != 0;
  return vma.prot | (was_writable ? PROT_WRITE : 0);
}

void protect(Batch& batch, const Vma& vma) {
  if (first_protection(vma) != vma.prot)
    batch.call(SYS_mprotect, {vma.range.start, vma.range.size(), first_protection(vma)},
               "mprotect " + describe(vma));
  batch.call(SYS_mprotect, {vma.range.start, vma.range.size(), vma.prot}, "mprotect " + describe(vma));
}

/// The kernel maps vvar, vvar_vclock and vdso together at one address: their first area's.
Status map_vdso(BuildContext& context, const Layout& next) {
  const auto first =
      std::find_if(next.begin(), next.end(), [](const Vma& v) { return v.kind == VmaKind::kVdso; });
  if (first == next.end()) return {};
  Batch batch;
  batch.call(SYS_arch_prctl, {uapi::kArchMapVdso64, first->range.start},
             "map the vdso at " + describe(*first));
  return context.run(batch);
}

Status map_areas(BuildContext& context, const std::vector<LayoutStep>& steps) {
  Batch batch;
  // KERNEL: neighbours are one area only if they show one open file, not the same file opened twice.
  std::map<std::string, int> opened_files;
  Status opened_all;
  for (const LayoutStep& step : steps) {
    const Vma& vma = step.area;
    if (step.kind != Kind::kMap || vma.kind == VmaKind::kVdso || vma.kind == VmaKind::kVsyscall) continue;
    bool opened = false;
    const bool writable = vma.shared && (vma.has_flag("mw") || (vma.prot & PROT_WRITE) != 0);
    const std::string file = fmt::format("{} {}", vma.path, writable);
    const auto known = opened_files.find(file);
    auto fd = known != opened_files.end() ? Result<int>(known->second) : backing(context, vma, opened);
    if (!fd.ok()) {
      opened_all = fd.take_error();
      break;
    }
    if (opened) opened_files.emplace(file, fd.value());
    const int prot = first_protection(vma);
    const uint64_t offset = vma.kind == VmaKind::kAnonymous ? 0 : vma.offset;
    batch.call(SYS_mmap, {vma.range.start, vma.range.size(), prot, map_flags(vma), fd.value(), offset},
               "mmap " + describe(vma));
    if (prot != vma.prot && !is_protected_last(vma)) protect(batch, vma);
    advise(batch, vma, {});
  }
  Status mapped = opened_all.ok() ? context.run(batch) : std::move(opened_all);
  for (const auto& [path, fd] : opened_files) ::close(fd);
  return mapped;
}

bool is_vdso(const LayoutStep& step) {
  return step.area.kind == VmaKind::kVdso;
}

}  // namespace

Status AddressSpace::follow(BuildContext& context, const Layout& next) {
  for (const Vma& vma : next) {
    if (!is_movable(vma))
      return fail(ErrorKind::kCorrupt, "map what cannot be carried", describe(vma),
                  "no source of this version sends it");
  }
  const std::vector<LayoutStep> steps = plan_layout(layout_, next);
  if (steps.empty()) {
    layout_ = next;
    return {};
  }
  TRY(context.shell.keep_clear_of(next));
  Batch unmap;
  for (const LayoutStep& step : steps) {
    if (step.kind != Kind::kUnmap) continue;
    unmap.call(SYS_munmap, {step.area.range.start, step.area.range.size()}, "munmap " + describe(step.area));
  }
  if (!unmap.empty()) TRY(context.run(unmap));
  if (std::any_of(steps.begin(), steps.end(),
                  [](const auto& s) { return s.kind == Kind::kMap && is_vdso(s); }))
    TRY(map_vdso(context, next));
  TRY(map_areas(context, steps));
  Batch change;
  for (const LayoutStep& step : steps) {
    if (step.kind == Kind::kProtect && !is_protected_last(step.area)) protect(change, step.area);
    if (step.kind == Kind::kAdvise) advise(change, step.area, step.had);
  }
  if (!change.empty()) TRY(context.run(change));
  layout_ = next;
  return {};
}

Status AddressSpace::finish_protections(BuildContext& context) {
  Batch batch;
  for (const Vma& vma : layout_) {
    if (is_protected_last(vma) && vma.prot != first_protection(vma))
      batch.call(SYS_mprotect, {vma.range.start, vma.range.size(), vma.prot}, "mprotect " + describe(vma));
  }
  return batch.empty() ? Status{} : context.run(batch);
}

Status AddressSpace::renew(BuildContext& context, AddressRange part) {
  LayoutStep step{Kind::kMap, *find_vma(layout_, part.start), {}};
  step.area.range = part;
  Batch unmap;
  unmap.call(SYS_munmap, {part.start, part.size()}, "munmap " + describe(step.area));
  TRY(context.run(unmap));
  return map_areas(context, {step});
}

bool inherit_details(Layout& layout, const Layout& detailed) {
  bool complete = true;
  for (Vma& vma : layout) {
    const Vma* old = nullptr;
    for (RemoteAddr at : {vma.range.start, RemoteAddr(vma.range.end.value() - kPageSize)}) {
      const Vma* there = find_vma(detailed, at);
      if (there != nullptr && there->shared == vma.shared && there->inode == vma.inode &&
          there->kind == vma.kind)
        old = there;
    }
    complete = complete && old != nullptr;
    if (old == nullptr) continue;
    vma.flags = old->flags;
    vma.protection_key = old->protection_key;
    vma.huge_page = old->huge_page;
  }
  return complete;
}

// ---- the room: fields of the mm
// ----------------------------------------------------------------------------------

namespace {

constexpr std::string_view kName = kAddressSpace;

Finding finding_of(const Vma& vma, std::string what, std::string why, std::string remedy) {
  return {std::string(kName),
          fmt::format("mapping {} ({})", vma.range, vma.path.empty() ? "anonymous" : vma.path),
          std::move(what),
          std::move(why),
          std::move(remedy),
          true};
}

std::optional<Finding> judge(const Vma& vma) {
  if (vma.kind == VmaKind::kUnsupported) {
    if (vma.path.starts_with("/SYSV"))
      return finding_of(vma, "a System V shared memory segment",
                        "other processes may share it, and it is not carried yet",
                        "detach it (shmdt), or use POSIX shared memory");
    if (vma.huge_page > kHugePageSize)
      return finding_of(vma, fmt::format("huge pages of {} kB", vma.huge_page >> 10),
                        "of hugetlbfs only those of 2048 kB are carried", "use huge pages of 2048 kB");
    if (vma.has_flag("ht"))
      return finding_of(vma, "a file of hugetlbfs", "other processes may share it, and it is not carried",
                        "use MAP_ANONYMOUS | MAP_HUGETLB, or memfd_create with MFD_HUGETLB");
    return finding_of(vma, "memory of a device or of the kernel", "its contents live in this host's hardware",
                      "close what mapped it");
  }
  const bool deleted = vma.path.ends_with(" (deleted)");
  if (deleted && (vma.kind == VmaKind::kFilePrivate || vma.kind == VmaKind::kFileShared) &&
      !vma.path.starts_with("/memfd:"))
    return finding_of(
        vma, "a mapping of a deleted file", "the destination has no such file",
        "restart the program (after an upgrade its libraries are replaced), or put the file back");
  if (vma.protection_key != 0)
    return finding_of(vma, "memory under a protection key", "protection keys are not carried yet",
                      "disable the program's use of pkey_mprotect");
  return std::nullopt;
}

/// KERNEL: what is pinned for long is written by no page table (io_uring's registered buffers, RDMA). A ring
/// need not show among descriptors or mappings: closed after IORING_REGISTER_RING_FDS, it lives on in its
/// thread. All of them count their buffers in the mm's pinned_vm, which status shows.
Result<std::optional<Finding>> find_pinned(const tracee::Process& process) {
  if (TRY(process.pinned_memory()) == 0) return std::optional<Finding>();
  return std::optional<Finding>({std::string(kName), fmt::format("pid {}", process.pid()),
                                 "memory pinned by registered io_uring buffers or a device",
                                 "writes to it pass by the page tables and would be missed",
                                 "start the program without io_uring, or let it unregister its buffers",
                                 true});
}

/// What appeared after the check, and may be gone in a moment: a ring, a file that was just deleted.
Status refuse_unmovable(const CaptureContext& context) {
  for (const Vma& vma : context.layout) {
    if (const auto found = judge(vma)) return capture_error(ErrorKind::kRetry, *found);
  }
  const auto pinned = TRY(find_pinned(context.process));
  return pinned ? Status(capture_error(ErrorKind::kRetry, *pinned)) : Status();
}

Status check(const CheckContext& context, Findings& findings) {
  for (const Vma& vma : context.layout) {
    if (auto found = judge(vma)) findings.push_back(std::move(*found));
  }
  if (auto pinned = TRY(find_pinned(context.process))) findings.push_back(std::move(*pinned));
  const std::string exe = TRY(read_link(context.process.path("exe")));
  if (exe.ends_with(" (deleted)"))
    findings.push_back({std::string(kName), exe, "the program file was deleted",
                        "the destination cannot open it", "restart the program, or put the file back", true});
  return {};
}

void put_stat(wire::AddressSpaceState& state, const tracee::Stat& stat) {
  state.set_start_code(stat.start_code);
  state.set_end_code(stat.end_code);
  state.set_start_data(stat.start_data);
  state.set_end_data(stat.end_data);
  state.set_start_brk(stat.start_brk);
  state.set_start_stack(stat.start_stack);
  state.set_arg_start(stat.arg_start);
  state.set_arg_end(stat.arg_end);
  state.set_env_start(stat.env_start);
  state.set_env_end(stat.env_end);
}

Result<std::string> capture(CaptureContext& context) {
  if (context.frozen != nullptr) TRY(refuse_unmovable(context));
  wire::AddressSpaceState state;
  put_stat(state, TRY(context.process.stat()));
  state.set_exe(TRY(read_link(context.process.path("exe"))));
  state.set_auxv(TRY(read_file(context.process.path("auxv"))));
  Batch batch;
  const size_t brk = batch.call(SYS_brk, {0}, "read the program break");
  TRY(context.runner->run(context.pid(), batch));
  state.set_brk(static_cast<uint64_t>(batch.result(brk)));
  return state.SerializeAsString();
}

/// As linux/prctl.h defines it.
struct MmMap {
  uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
  uint64_t arg_start, arg_end, env_start, env_end;
  uint64_t auxv;
  uint32_t auxv_size;
  uint32_t exe_fd;
};

/// The kernel reads the auxv through a pointer inside the structure.
Status set_mm(BuildContext& context, const wire::AddressSpaceState& state, int exe) {
  Batch batch;
  const auto auxv = batch.put(std::as_bytes(std::span(state.auxv())));
  MmMap map{state.start_code(),
            state.end_code(),
            state.start_data(),
            state.end_data(),
            state.start_brk(),
            state.brk(),
            state.start_stack(),
            state.arg_start(),
            state.arg_end(),
            state.env_start(),
            state.env_end(),
            0,
            static_cast<uint32_t>(state.auxv().size()),
            static_cast<uint32_t>(exe)};
  const auto ref = batch.put_value(map);
  batch.point(ref, offsetof(MmMap, auxv), auxv);
  constexpr int kPrSetMm = 35, kPrSetMmMap = 14;
  batch.call(SYS_prctl, {kPrSetMm, kPrSetMmMap, ref, sizeof map, 0},
             "prctl(PR_SET_MM_MAP) with exe " + state.exe());
  return context.run(batch);
}

Status prepare(BuildContext&, std::string_view) {
  return {};
}

/// Whether the shell, which has the program file of its engine, has the right one already.
bool has_exe(const BuildContext& context, const std::string& path, const Fd& exe) {
  const std::string link = fmt::format("/proc/{}/exe", context.shell.pid());
  const auto now = read_link(link);
  struct stat there {
  }, wanted{};
  return now.ok() && now.value() == path && ::stat(link.c_str(), &there) == 0 &&
         ::fstat(exe.get(), &wanted) == 0 && there.st_dev == wanted.st_dev && there.st_ino == wanted.st_ino;
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::AddressSpaceState>(kName, message));
  const Fd exe = TRY(open_foreign_file(state.exe(), false, "open the program file"));
  // KERNEL: it cannot be changed while the present one is mapped: EBUSY where a program moves its own like.
  constexpr int kAsItIs = -1;
  return set_mm(context, state, has_exe(context, state.exe(), exe) ? kAsItIs : exe.get());
}

}  // namespace

bool is_movable(const Vma& vma) {
  return !judge(vma);
}

const Room kAddressSpaceRoom{kName, false, check, capture, prepare, finish};

}  // namespace godwit::state
