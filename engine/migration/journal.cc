#include "engine/migration/journal.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/files.h"

namespace godwit::migration {
namespace {

constexpr std::string_view kUndo = "undo:\n";  // all that follows

std::string doubt_path(pid_t pid) {
  return fmt::format("{}/in-doubt.{}", kJournalFolder, pid);
}
std::string verdict_path(const wire::SessionId& session) {
  return fmt::format("{}/session.{}", kJournalFolder, wire::to_hex(session));
}

/// Written under another name and renamed: a reader sees all of it or nothing.
Status write_whole(const std::string& path, std::string_view text) {
  if (::mkdir(kJournalFolder, 0700) != 0 && errno != EEXIST) return fail_errno("mkdir", kJournalFolder);
  const std::string partial = path + ".partial";
  TRY(write_file(partial, text));
  if (::rename(partial.c_str(), path.c_str()) != 0) return fail_errno("rename", partial);
  return {};
}

}  // namespace

Status write_in_doubt(const InDoubt& entry) {
  return write_whole(doubt_path(entry.pid),
                     fmt::format("pid: {}\nstart: {}\ndestination: {}\nsession: {}\n{}{}", entry.pid,
                                 entry.start_time, entry.destination, entry.session, kUndo, entry.undo));
}

Result<std::optional<InDoubt>> read_in_doubt(pid_t pid) {
  auto text = read_file(doubt_path(pid));
  if (!text.ok() && text.error().err == ENOENT) return std::optional<InDoubt>();
  const std::string found = TRY(std::move(text));
  const auto start = parse_number(field(found, "start:").value_or(""));
  const auto destination = field(found, "destination:");
  const auto session = field(found, "session:");
  if (!start || !destination || !session)
    return fail(ErrorKind::kCorrupt, "read the journal", doubt_path(pid),
                "remove it if the process is known to be elsewhere");
  const size_t undo = found.find(kUndo);
  return std::optional(InDoubt{pid, *start, std::string(*destination), std::string(*session),
                               undo == std::string::npos ? "" : found.substr(undo + kUndo.size())});
}

void remove_in_doubt(pid_t pid) {
  ::unlink(doubt_path(pid).c_str());
}

Status write_verdict(const wire::SessionId& session, std::string_view state) {
  return write_whole(verdict_path(session), state);
}

Status write_verdict_at(const std::string& path, std::string_view state) {
  return write_whole(path, state);
}

void remove_verdict(const wire::SessionId& session) {
  ::unlink(verdict_path(session).c_str());
}

wire::Verdict::Value read_verdict(const wire::SessionId& session) {
  auto text = read_file(verdict_path(session));
  if (!text.ok()) return text.error().err == ENOENT ? wire::Verdict::ABORTED : wire::Verdict::UNKNOWN;
  if (*text == kLackingState) return wire::Verdict::LACKING;
  return *text == kRunningState ? wire::Verdict::RUNNING : wire::Verdict::UNKNOWN;
}

}  // namespace godwit::migration
