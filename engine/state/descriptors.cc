#include "engine/state/descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <vector>

#include "engine/base/log.h"
#include "engine/state/description_common.h"
#include "engine/state/fd_holders.h"
#include "engine/state/process_rooms.h"
#include "engine/state/unclaimed.h"
#include "engine/wire/rooms_fds.pb.h"

namespace godwit::state {
namespace {

constexpr std::string_view kRoom = "descriptors";
constexpr uint32_t kNumberLimit = 1U << 20;  // fs/file.c: sysctl_nr_open's default

const DescriptorRoom* room_named(std::string_view name) {
  const auto all = descriptor_rooms();
  const auto it = std::find_if(all.begin(), all.end(), [&](const auto& room) { return room.name == name; });
  return it == all.end() ? nullptr : &*it;
}

/// Rooms of a table that validate() has seen.
const DescriptorRoom& room_of(const wire::Description& description) {
  return *room_named(description.room());
}

// ---- source
// ----------------------------------------------------------------------------------------------------

/// A pipe or socket that another process holds too would be torn in two: one end of the sharing moves away.
void check_sharing(const CheckContext& ctx, Findings& findings) {
  std::set<std::string> links;
  for (const OpenFile& file : ctx.files)
    if (file.link.starts_with("pipe:[") || file.link.starts_with("socket:[")) links.insert(file.link);
  const auto holders = find_holders(ctx.process.pid(), links);
  for (const OpenFile& file : ctx.files) {
    const auto holder = holders.find(file.link);
    if (holder == holders.end()) continue;
    const char* what = file.link.starts_with("pipe:[") ? "a pipe to another process"
                                                       : "a socket shared with another process";
    // With a child it ends: the look is repeated for as long as for the child itself.
    const bool child = holder->second.parent == ctx.process.pid();
    findings.push_back(
        {std::string(child ? kChildren : kRoom), file.subject(), what,
         fmt::format("{} holds it too and stays on this host", to_text(holder->second)),
         "close it in one of the two; give a daemon files or /dev/null as its standard streams", true});
  }
}

Status capture_one(CaptureContext& ctx, const OpenFile& file, wire::Description& out) {
  const DescriptorRoom* room = room_of(file);
  // The check did not see it, so it may be there for a moment only.
  if (room == nullptr) return capture_error(ErrorKind::kRetry, describe_unclaimed(file));
  out.set_room(std::string(room->name));
  out.set_key(file.key());
  out.set_subject(file.subject());
  for (const Descriptor& descriptor : file.descriptors) {
    auto* number = out.add_numbers();
    number->set_number(static_cast<uint32_t>(descriptor.number));
    number->set_close_on_exec(descriptor.close_on_exec);
  }
  TRY(capture_common(ctx, file, out));
  out.set_payload(TRY(room->capture(ctx, file)));
  return {};
}

// ---- destination
// -------------------------------------------------------------------------------------------------

Error corrupt(std::string subject, std::string why) {
  return fail(ErrorKind::kCorrupt, "read the table of descriptors", std::move(subject), std::move(why));
}

Result<wire::DescriptorTable> parse_table(std::string_view bytes) {
  auto table = TRY(parse_message<wire::DescriptorTable>(kRoom, bytes));
  std::set<uint32_t> seen;
  std::set<std::string> keys;
  for (const auto& description : table.descriptions()) {
    if (room_named(description.room()) == nullptr)
      return fail(ErrorKind::kUnsupported, "rebuild " + description.subject(), "room " + description.room(),
                  "this version does not know it: use the same version on both hosts");
    if (description.numbers().empty()) return corrupt(description.subject(), "it has no number");
    if (!keys.insert(description.key()).second) return corrupt(description.subject(), "it comes twice");
    for (const auto& number : description.numbers())
      if (number.number() >= kNumberLimit || !seen.insert(number.number()).second)
        return corrupt(fmt::format("fd {}", number.number()), "the number is too high or comes twice");
  }
  return table;
}

int highest_number(const wire::DescriptorTable& table) {
  uint32_t highest = 0;
  for (const auto& description : table.descriptions())
    for (const auto& number : description.numbers()) highest = std::max(highest, number.number());
  return static_cast<int>(highest);
}

/// The soft limit is the engine's own, whose thread makes the descriptors.
Status raise_limit(int needed) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return fail_errno("getrlimit(RLIMIT_NOFILE)", "this engine");
  const auto wanted = static_cast<rlim_t>(needed);
  if (limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return fail_errno("setrlimit(RLIMIT_NOFILE)", "this engine");
  }
  if (limit.rlim_max >= wanted) return {};
  return fail(ErrorKind::kSystem, "make room for the descriptors of the process",
              fmt::format("RLIMIT_NOFILE of this engine ({}; needed: {})", limit.rlim_max, wanted),
              "start the receiving engine with a higher hard limit (ulimit -Hn)");
}

/// Moves what is parked out of the way of the numbers of the process.
Status lift_parking(BuildContext& ctx, const wire::DescriptorTable& table) {
  const int base = std::max(ctx.parking_base, highest_number(table) + 1);
  const auto parked = ctx.prepared.size() + ctx.anchors.size() + ctx.objects.size();
  const auto coming = 3 * static_cast<size_t>(table.descriptions_size());
  TRY(raise_limit(base + static_cast<int>(parked + coming)));
  ctx.parking_base = base;
  const auto lift = [&](int& fd) -> Status {
    if (fd >= 0 && fd < base) fd = TRY(park(ctx, fd, "a parked descriptor"));
    return {};
  };
  for (auto& [key, fd] : ctx.prepared) TRY(lift(fd));
  for (auto& [name, fd] : ctx.anchors) TRY(lift(fd));
  for (auto& [id, object] : ctx.objects) TRY(lift(object.fd));
  return {};
}

/// What a prepared descriptor can be used for.
std::string full_key(const wire::Description& description) {
  const DescriptorRoom& room = room_of(description);
  const std::string identity =
      room.identity != nullptr ? room.identity(description.payload()) : std::string();
  return fmt::format("{}|{}|{}", description.room(), description.key(), identity);
}

/// A description with what is looked up for it once: a room's identity means parsing its message.
struct Entry {
  const wire::Description& description;
  const DescriptorRoom& room;
  std::string key;

  [[nodiscard]] int number() const { return static_cast<int>(description.numbers(0).number()); }
};

std::vector<Entry> list_entries(const wire::DescriptorTable& table) {
  std::vector<Entry> entries;
  entries.reserve(static_cast<size_t>(table.descriptions_size()));
  for (const auto& description : table.descriptions())
    entries.push_back({description, room_of(description), full_key(description)});
  return entries;
}

/// Closes what the table no longer has.
void close_stale(BuildContext& ctx, const std::vector<Entry>& entries) {
  std::set<std::string_view> wanted;
  for (const Entry& entry : entries) wanted.insert(entry.key);
  std::erase_if(ctx.prepared, [&](const auto& prepared) {
    if (wanted.contains(prepared.first)) return false;
    ::close(prepared.second);
    return true;
  });
}

Status make_one(BuildContext& ctx, const Entry& entry) {
  if (ctx.prepared.contains(entry.key)) return {};
  const int fd = TRY(entry.room.prepare(ctx, entry.description.payload()));
  ctx.prepared[entry.key] = TRY(park(ctx, fd, entry.description.subject()));
  return {};
}

Status place_one(BuildContext& ctx, const Entry& entry) {
  const auto parked = ctx.prepared.extract(entry.key);
  for (const auto& number : entry.description.numbers()) {
    const int flags = number.close_on_exec() ? O_CLOEXEC : 0;
    if (::dup3(parked.mapped(), static_cast<int>(number.number()), flags) < 0)
      return fail_errno(fmt::format("dup3 to {}", number.number()), entry.description.subject());
  }
  ::close(parked.mapped());
  return {};
}

/// Closes all numbers below parking_base that the table does not have: what a failed attempt left behind.
Status close_others(const BuildContext& ctx, const wire::DescriptorTable& table) {
  std::set<unsigned> numbers;
  for (const auto& description : table.descriptions())
    for (const auto& number : description.numbers()) numbers.insert(number.number());
  numbers.insert(static_cast<unsigned>(ctx.parking_base));
  unsigned first = 0;
  for (const unsigned number : numbers) {
    if (first < number && ::close_range(first, number - 1, 0) != 0)
      return fail_errno("close_range", fmt::format("fds {} to {}", first, number - 1));
    first = number + 1;
  }
  return {};
}

}  // namespace

const DescriptorRoom* room_of(const OpenFile& file) {
  for (const DescriptorRoom& room : descriptor_rooms())
    if (room.claims(file)) return &room;
  return nullptr;
}

Status check_descriptors(const CheckContext& ctx, Findings& findings) {
  check_sharing(ctx, findings);
  for (const OpenFile& file : ctx.files) {
    const DescriptorRoom* room = room_of(file);
    if (room == nullptr) {
      findings.push_back(describe_unclaimed(file));
      continue;
    }
    TRY(check_async_owner(ctx, file, findings));
    TRY(room->check(ctx, file, findings));
  }
  return {};
}

Result<std::string> capture_descriptors(CaptureContext& ctx) {
  wire::DescriptorTable table;
  for (const OpenFile& file : ctx.files) {
    wire::Description description;
    const Status captured = capture_one(ctx, file, description);
    // While the process runs a descriptor may close, or be in the middle of something, at any instant: it
    // comes with the final message. What cannot move at all is said now.
    const bool later =
        !captured.ok() && ctx.frozen == nullptr && captured.error().kind != ErrorKind::kUnsupported;
    if (captured.ok()) {
      *table.add_descriptions() = std::move(description);
    } else if (!later) {
      return captured.error();
    }
  }
  return table.SerializeAsString();
}

Status prepare_descriptors(BuildContext& ctx, std::string_view description) {
  const auto table = TRY(parse_table(description));
  TRY(lift_parking(ctx, table));
  const auto entries = list_entries(table);
  close_stale(ctx, entries);
  // What cannot be made from a description may be gone in the final message (a temporary file); if not,
  // finish() fails on it.
  for (const Entry& entry : entries) (void)make_one(ctx, entry).ok();
  return {};
}

Status finish_descriptors(BuildContext& ctx, std::string_view message) {
  const auto table = TRY(parse_table(message));
  TRY(lift_parking(ctx, table));
  const auto entries = list_entries(table);
  close_stale(ctx, entries);
  for (const Entry& entry : entries) TRY(make_one(ctx, entry));
  // ORDER: from here all numbers below parking_base belong to the process alone.
  for (const Entry& entry : entries) TRY(place_one(ctx, entry));
  TRY(close_others(ctx, table));
  for (const Entry& entry : entries) TRY(entry.room.finish(ctx, entry.number(), entry.description.payload()));
  // ORDER: filling a queue may change the flags of its other end.
  for (const Entry& entry : entries) TRY(apply_common(ctx, entry.number(), entry.description));
  for (const Entry& entry : entries)
    if (entry.room.wire_up != nullptr)
      TRY(entry.room.wire_up(ctx, entry.number(), entry.description.payload()));
  for (const auto& [name, fd] : ctx.anchors) ::close(fd);
  ctx.anchors.clear();
  return {};
}

Result<Fd> duplicate(const CaptureContext& ctx, const OpenFile& file) {
  auto copy = ctx.process.pidfd().get_fd(file.number());
  if (copy.ok()) return copy;
  return fail_errno("duplicate a descriptor of the process", file.subject(), copy.error().err);
}

Result<int> park(BuildContext& ctx, int fd, std::string_view subject) {
  const int parked = ::fcntl(fd, F_DUPFD_CLOEXEC, ctx.parking_base);
  const int err = errno;
  ::close(fd);
  if (parked < 0) return fail_errno("fcntl(F_DUPFD)", std::string(subject), err);
  return parked;
}

Result<int> reopen(int fd, int flags, std::string_view subject) {
  const int opened = ::open(fmt::format("/proc/thread-self/fd/{}", fd).c_str(), flags | O_CLOEXEC);
  if (opened < 0) return fail_errno("open /proc/thread-self/fd", std::string(subject));
  return opened;
}

Status keep_anchor(BuildContext& ctx, const std::string& name, int fd) {
  ctx.anchors[name] = TRY(park(ctx, fd, name));
  return {};
}

std::optional<int> anchor(const BuildContext& ctx, const std::string& name) {
  const auto it = ctx.anchors.find(name);
  return it == ctx.anchors.end() ? std::nullopt : std::optional(it->second);
}

Result<int> take_anchor(const BuildContext& ctx, const std::string& name, std::string_view subject) {
  const auto kept = anchor(ctx, name);
  if (!kept)
    return fail(ErrorKind::kBug, "take one end of " + name, std::string(subject), "it was never made");
  const int copy = ::fcntl(*kept, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return fail_errno("fcntl(F_DUPFD)", std::string(subject));
  return copy;
}

}  // namespace godwit::state
