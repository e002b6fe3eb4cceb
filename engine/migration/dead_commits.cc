#include "engine/migration/dead_commits.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <system_error>

#include "engine/address/address_undo.h"
#include "engine/base/files.h"
#include "engine/base/log.h"
#include "engine/base/pidfd.h"
#include "engine/migration/journal.h"
#include "engine/tracee/process.h"

namespace godwit::migration {
namespace {

constexpr std::string_view kUndo = "undo:\n";

/// A process by pid and start time: a recycled pid is not it.
struct Identity {
  pid_t pid = 0;
  uint64_t start_time = 0;
};

struct Note {
  Identity engine;
  Identity process;
  std::string undo;
  QueryKey key;
  bool lacks = false;  ///< pages, when it runs
};

Result<uint64_t> start_time(pid_t pid) {
  return TRY(tracee::parse_stat(TRY(read_file(fmt::format("/proc/{}/stat", pid))))).start_time;
}

Result<std::string> identity(pid_t pid) {
  return fmt::format("{} {}", pid, TRY(start_time(pid)));
}

std::optional<Identity> to_identity(std::optional<std::string_view> text) {
  const auto words = split(text.value_or(""), ' ');
  if (words.size() != 2) return std::nullopt;
  const auto pid = parse_number(words[0]);
  const auto start = parse_number(words[1]);
  if (!pid || !start || *pid == 0 || *pid > INT32_MAX) return std::nullopt;
  return Identity{static_cast<pid_t>(*pid), *start};
}

std::optional<Note> read_note(const std::string& path) {
  auto text = read_file(path);
  if (!text.ok() || !text->starts_with("committing\n")) return std::nullopt;
  const size_t undo = text->find(kUndo);
  const auto engine = to_identity(field(*text, "engine:"));
  const auto process = to_identity(field(*text, "process:"));
  if (undo == std::string::npos || !engine || !process) return std::nullopt;
  return Note{*engine, *process, text->substr(undo + kUndo.size()),
              find_key(std::string_view(*text).substr(0, undo)), field(*text, "lacks:") == "yes"};
}

/// Waits `milliseconds` at most for its end.
bool lives(const Identity& who, int milliseconds) {
  auto process = PidFd::open(who.pid);
  if (!process.ok()) return false;
  auto started = start_time(who.pid);
  if (!started.ok() || *started != who.start_time) return false;
  pollfd wait{process->get(), POLLIN, 0};
  return ::poll(&wait, 1, milliseconds) == 0;
}

void clear(const std::string& path, const Note& note) {
  if (lives(note.engine, 0)) return;
  // KERNEL: a shell whose engine died has its SIGKILL already, but may still be on its way out.
  constexpr int kDying = 2000;
  if (lives(note.process, kDying)) {
    (void)write_verdict_at(path, note.lacks ? kLackingState : kRunningState, note.key);
    return;
  }
  const auto addresses = address::AddressUndo::from_text(note.undo);
  if (!note.undo.empty() && addresses.ok()) {
    if (Status undone = address::undo(addresses.value()); !undone.ok())
      log_debug("clear up after a dead engine: {}", undone.error().message());
  }
  (void)write_verdict_at(path, "committing", note.key);
}

}  // namespace

Status note_commit(const wire::SessionId& session, pid_t process, const std::string& undo,
                   const QueryKey& key, bool lacks) {
  return write_verdict(
      session,
      fmt::format("committing\nengine: {}\nprocess: {}\nlacks: {}\n{}{}", TRY(identity(::getpid())),
                  TRY(identity(process)), lacks ? "yes" : "no", kUndo, undo),
      key);
}

void clear_dead_commits() {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(kJournalFolder, none)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("session.") || name.ends_with(".partial")) continue;
    if (const auto note = read_note(entry.path())) clear(entry.path(), *note);
  }
}

}  // namespace godwit::migration
