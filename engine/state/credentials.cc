// Room "credentials": ids, groups, capabilities and what hangs on them, for every thread (the kernel keeps
// them by thread). The last room: afterwards the shell may lack the privilege for anything else.
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>

#include "engine/base/files.h"
#include "engine/state/process_rooms.h"
#include "engine/wire/rooms_process.pb.h"

namespace godwit::state {
namespace {

using tracee::Batch;
constexpr std::string_view kName = "credentials";
constexpr uint32_t kCapabilityVersion = 0x20080522;  // _LINUX_CAPABILITY_VERSION_3
constexpr uint32_t kSecureKeepCaps = 1 << 4;         // SECBIT_KEEP_CAPS

template <typename List>
void parse_ids(std::string_view text, List* list) {
  for (std::string_view word : split(text, '\t')) {
    for (std::string_view id : split(word, ' '))
      list->Add(static_cast<uint32_t>(parse_number(id).value_or(0)));
  }
}

void parse_status(std::string_view status, wire::ThreadCredentials& state) {
  parse_ids(field(status, "Uid:").value_or(""), state.mutable_uids());
  parse_ids(field(status, "Gid:").value_or(""), state.mutable_gids());
  parse_ids(field(status, "Groups:").value_or(""), state.mutable_groups());
  const auto caps = [&](std::string_view key) {
    return parse_number(field(status, key).value_or("0"), 16).value_or(0);
  };
  state.set_cap_inheritable(caps("CapInh:"));
  state.set_cap_permitted(caps("CapPrm:"));
  state.set_cap_effective(caps("CapEff:"));
  state.set_cap_bounding(caps("CapBnd:"));
  state.set_cap_ambient(caps("CapAmb:"));
  state.set_no_new_privs(field(status, "NoNewPrivs:").value_or("0") == "1");
}

Result<std::string> capture(CaptureContext& context) {
  wire::CredentialsState state;
  for (const tracee::FrozenThread& thread : context.frozen->threads()) {
    wire::ThreadCredentials& one = *state.add_threads();
    const ThreadView& view = *TRY(view_of(context, thread.tid));
    parse_status(view.status, one);
    one.set_tid(view.inner);
    one.set_securebits(view.securebits);
    state.set_dumpable(view.dumpable);
  }
  return state.SerializeAsString();
}

struct CapHeader {
  uint32_t version;
  int32_t pid;
};
struct CapData {
  uint32_t effective, permitted, inheritable;
};

void drop_bounding(Batch& batch, const wire::ThreadCredentials& wanted, uint64_t has) {
  for (unsigned cap = 0; cap < 64; ++cap) {
    const uint64_t bit = uint64_t{1} << cap;
    if ((has & bit) != 0 && (wanted.cap_bounding() & bit) == 0)
      batch.call(SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0},
                 fmt::format("drop capability {} from the bounding set", cap));
  }
}

void set_ids(Batch& batch, const wire::ThreadCredentials& wanted) {
  const auto groups =
      batch.put(std::as_bytes(std::span(wanted.groups().data(), static_cast<size_t>(wanted.groups_size()))));
  batch.call(SYS_setgroups, {wanted.groups_size(), groups}, "setgroups");
  batch.call(SYS_setresgid, {wanted.gids(0), wanted.gids(1), wanted.gids(2)}, "setresgid");
  batch.call(SYS_setfsgid, {wanted.gids(3)}, "setfsgid");
  batch.call(SYS_setresuid, {wanted.uids(0), wanted.uids(1), wanted.uids(2)}, "setresuid");
  batch.call(SYS_setfsuid, {wanted.uids(3)}, "setfsuid");
}

void set_capabilities(Batch& batch, const wire::ThreadCredentials& wanted) {
  const CapHeader header{kCapabilityVersion, 0};
  const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
  const auto high = [](uint64_t v) { return static_cast<uint32_t>(v >> 32); };
  const std::array<CapData, 2> data = {
      {{low(wanted.cap_effective()), low(wanted.cap_permitted()), low(wanted.cap_inheritable())},
       {high(wanted.cap_effective()), high(wanted.cap_permitted()), high(wanted.cap_inheritable())}}};
  batch.call(SYS_capset, {batch.put_value(header), batch.put_value(data)}, "capset");
  for (unsigned cap = 0; cap < 64; ++cap) {
    if ((wanted.cap_ambient() >> cap & 1) != 0)
      batch.call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0},
                 fmt::format("raise ambient capability {}", cap));
  }
}

/// ORDER: bounding set while SETPCAP is there; keep capabilities over the change of ids; then exactly those
/// wanted; then the final securebits. A change of ids resets dumpable and the parent death signal, so these
/// come after.
Status finish_thread(BuildContext& context, const wire::ThreadCredentials& wanted, int dumpable) {
  if (wanted.uids_size() != 4 || wanted.gids_size() != 4)
    return fail(ErrorKind::kCorrupt, "set credentials", fmt::format("thread {}", wanted.tid()),
                "there are four ids of each kind");
  const pid_t outer = context.shell.outer_tid(wanted.tid());
  wire::ThreadCredentials is;
  parse_status(TRY(read_file(fmt::format("/proc/{}/status", outer))), is);
  wire::ThreadCredentials as_wanted = wanted;
  as_wanted.clear_tid();
  as_wanted.clear_securebits();
  Batch batch;
  if (is.SerializeAsString() != as_wanted.SerializeAsString() || wanted.securebits() != 0) {
    drop_bounding(batch, wanted, is.cap_bounding());
    batch.call(SYS_prctl, {PR_SET_SECUREBITS, kSecureKeepCaps}, "prctl(PR_SET_SECUREBITS)");
    set_ids(batch, wanted);
    // Securebits need SETPCAP, which the final capabilities may lack: effective capabilities vanish with the
    // ids, but permitted ones were kept and are raised again by the same call that sets the rest.
    wire::ThreadCredentials all = is;
    all.set_cap_effective(is.cap_permitted());
    set_capabilities(batch, all);
    batch.call(SYS_prctl, {PR_SET_SECUREBITS, wanted.securebits()}, "prctl(PR_SET_SECUREBITS)");
    set_capabilities(batch, wanted);
    if (wanted.no_new_privs())
      batch.call(SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0}, "prctl(PR_SET_NO_NEW_PRIVS)");
  }
  // Only the kernel itself can make a process "suid dumpable" (2); reading back as not dumpable is the
  // nearest.
  batch.call(SYS_prctl, {PR_SET_DUMPABLE, dumpable == 1 ? 1 : 0}, "prctl(PR_SET_DUMPABLE)");
  return context.shell.run(wanted.tid(), batch);
}

Status finish(BuildContext& context, std::string_view message) {
  const auto state = TRY(parse_message<wire::CredentialsState>(kName, message));
  for (const auto& thread : state.threads()) TRY(finish_thread(context, thread, state.dumpable()));
  return {};
}

Status check(const CheckContext&, Findings&) {
  return {};
}
Status prepare(BuildContext&, std::string_view) {
  return {};
}

}  // namespace

const Room kCredentialsRoom{kName, false, check, capture, prepare, finish, true};

}  // namespace godwit::state
