// Room "process": what belongs to the process as a whole and is no memory, descriptor, thread or privilege.
// Its check also refuses what this version does not move: children, foreign roots and namespaces.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/files.h"
#include "engine/state/process_rooms.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {
namespace {

using tracee::Batch;
constexpr std::string_view kName = "process";

// ---- check
// -------------------------------------------------------------------------------------------------------

void add(Findings& findings, std::string subject, std::string what, std::string why, std::string remedy,
         bool fatal = true) {
  findings.push_back(
      {std::string(kName), std::move(subject), std::move(what), std::move(why), std::move(remedy), fatal});
}

/// Namespaces that this engine must share to see what the process sees.
Status check_namespaces(const CheckContext& context, Findings& findings) {
  for (const char* name : {"mnt", "net", "user"}) {
    const std::string theirs = TRY(read_link(context.process.path(fmt::format("ns/{}", name))));
    const std::string ours = TRY(read_link(fmt::format("/proc/self/ns/{}", name)));
    if (theirs != ours)
      add(findings, fmt::format("{} namespace", name), "the process lives in another one than godwit",
          "its files, addresses or ids mean something else there",
          fmt::format("run godwit inside it: nsenter --target {} --{}", context.process.pid(),
                      std::string_view(name) == "mnt" ? "mount" : name));
  }
  return {};
}

/// A child that lives for a moment is waited for: in the check as in the freeze.
Status check_children(const tracee::Process& process, Findings& findings) {
  const auto children = TRY(process.children());
  if (children.empty()) return {};
  findings.push_back({std::string(kChildren), fmt::format("pid {}", children.front()),
                      fmt::format("{} child process(es)", children.size()),
                      "this version moves single processes, not trees",
                      "move a program without children, or wait until they end", true});
  return {};
}

Status check(const CheckContext& context, Findings& findings) {
  const tracee::Process& process = context.process;
  TRY(check_children(process, findings));
  TRY(check_namespaces(context, findings));
  const std::string root = TRY(read_link(process.path("root")));
  if (root != "/")
    add(findings, root, "another root directory (chroot)", "paths would not be found",
        "run godwit in that root");
  const std::string cwd = TRY(read_link(process.path("cwd")));
  if (cwd.ends_with(" (deleted)"))
    add(findings, cwd, "its working directory was deleted", "the destination has no such directory",
        "let the program chdir elsewhere");
  const tracee::Stat stat = TRY(process.stat());
  if (stat.session != stat.pgrp || stat.pgrp != process.pid())
    add(findings, fmt::format("session {}", stat.session), "the process does not lead its session",
        "its session leader stays behind: it will lead a session of its own",
        "start it with setsid if it must not notice", false);
  if (stat.tty != 0)
    add(findings, "controlling terminal", "the process has a controlling terminal",
        "terminals stay on their host", "start it with setsid, away from the terminal", false);
  return {};
}

// ---- capture
// -----------------------------------------------------------------------------------------------------

/// KERNEL: another user's limits are readable only with CAP_SYS_RESOURCE, one's own always: the process asks.
Status capture_own_view(CaptureContext& context, wire::ProcessState& state) {
  Batch batch;
  const auto reaper = batch.reserve(sizeof(int));
  batch.call(SYS_prctl, {PR_GET_CHILD_SUBREAPER, reaper}, "prctl(PR_GET_CHILD_SUBREAPER)");
  const size_t huge = batch.call(SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0}, "prctl(PR_GET_THP_DISABLE)");
  std::vector<tracee::DataRef> limits;
  for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
    limits.push_back(batch.reserve(sizeof(rlimit)));
    batch.call(SYS_prlimit64, {0, resource, 0, limits.back()},
               fmt::format("prlimit of resource {}", resource));
  }
  TRY(context.runner->run(context.pid(), batch));
  state.set_child_subreaper(batch.value<int>(reaper));
  state.set_thp_disabled(static_cast<int>(batch.result(huge)));
  for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
    const auto limit = batch.value<rlimit>(limits[static_cast<size_t>(resource)]);
    auto* entry = state.add_limits();
    entry->set_resource(static_cast<uint32_t>(resource));
    entry->set_soft(limit.rlim_cur);
    entry->set_hard(limit.rlim_max);
  }
  return {};
}

Status capture_proc_files(const tracee::Process& process, wire::ProcessState& state) {
  const auto number = [&](const char* file, int base) -> Result<uint64_t> {
    return parse_number(trim(TRY(read_file(process.path(file)))), base).value_or(0);
  };
  state.set_working_directory(TRY(read_link(process.path("cwd"))));
  state.set_umask(static_cast<uint32_t>(
      parse_number(field(TRY(process.status(process.pid())), "Umask:").value_or("22"), 8).value_or(022)));
  const std::string score = TRY(read_file(process.path("oom_score_adj")));
  const bool negative = score.starts_with('-');
  const auto magnitude =
      static_cast<int>(parse_number(trim(std::string_view(score).substr(negative ? 1 : 0))).value_or(0));
  state.set_oom_score_adj(negative ? -magnitude : magnitude);
  state.set_personality(TRY(number("personality", 16)));
  state.set_coredump_filter(static_cast<uint32_t>(TRY(number("coredump_filter", 16))));
  return {};
}

Result<std::string> capture(CaptureContext& context) {
  Findings children;
  TRY(check_children(context.process, children));
  if (!children.empty()) return capture_error(ErrorKind::kRetry, children.front());
  wire::ProcessState state;
  TRY(capture_proc_files(context.process, state));
  TRY(capture_own_view(context, state));
  const tracee::Stat stat = TRY(context.process.stat());
  state.set_session_leader(stat.session == context.pid());
  return state.SerializeAsString();
}

// ---- build
// -------------------------------------------------------------------------------------------------------

Status prepare(BuildContext&, std::string_view) {
  return {};
}

Status build_limits(const BuildContext& context, const wire::ProcessState& state) {
  for (const auto& entry : state.limits()) {
    const auto resource = static_cast<__rlimit_resource>(entry.resource());
    const rlimit wanted{entry.soft(), entry.hard()};
    rlimit is{};
    if (::prlimit(context.shell.pid(), resource, nullptr, &is) != 0)
      return fail_errno("prlimit", fmt::format("resource {}", entry.resource()));
    if (is.rlim_cur == wanted.rlim_cur && is.rlim_max == wanted.rlim_max) continue;
    if (::prlimit(context.shell.pid(), resource, &wanted, nullptr) == 0) continue;
    Error error = fail_errno(
        "prlimit", fmt::format("resource {} to {} / {}", entry.resource(), entry.soft(), entry.hard()));
    error.remedy = "raise the hard limit of godwit receive, or give it CAP_SYS_RESOURCE";
    return error;
  }
  return {};
}

Status build_oom_score(const BuildContext& context, int wanted) {
  const std::string path = fmt::format("/proc/{}/oom_score_adj", context.shell.pid());
  if (trim(TRY(read_file(path))) == std::to_string(wanted)) return {};
  Status written = write_file(path, std::to_string(wanted));
  if (written.ok()) return written;
  Error error = written.take_error();
  error.remedy = "lowering it needs CAP_SYS_RESOURCE at the destination";
  return error;
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::ProcessState>(kName, message));
  Batch batch;
  batch.call(SYS_chdir, {batch.put_string(state.working_directory())},
             "chdir to " + state.working_directory());
  batch.call(SYS_umask, {state.umask()}, "umask");
  batch.call_may_fail(SYS_setsid, {}, "setsid");  // already a leader when the shell made itself one
  batch.call(SYS_personality, {state.personality()}, "personality");
  batch.call(SYS_prctl, {PR_SET_CHILD_SUBREAPER, state.child_subreaper()}, "prctl(PR_SET_CHILD_SUBREAPER)");
  batch.call(SYS_prctl, {PR_SET_THP_DISABLE, state.thp_disabled(), 0, 0, 0}, "prctl(PR_SET_THP_DISABLE)");
  TRY(context.run(batch));
  TRY(build_limits(context, state));
  TRY(build_oom_score(context, state.oom_score_adj()));
  return write_file(fmt::format("/proc/{}/coredump_filter", context.shell.pid()),
                    fmt::format("{:#x}", state.coredump_filter()));
}

}  // namespace

const Room kProcessRoom{kName, false, check, capture, prepare, finish, false};

}  // namespace godwit::state
