#include "engine/migration/journal.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

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

/// Nothing for a plain session.
std::string key_line(const QueryKey& key) {
  if (!key.secure) return {};
  std::string line = "key: ";
  for (const std::byte byte : key.key) line += fmt::format("{:02x}", static_cast<unsigned>(byte));
  return line + "\n";
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

Status write_verdict(const wire::SessionId& session, std::string_view state, const QueryKey& key) {
  return write_verdict_at(verdict_path(session), state, key);
}

Status write_verdict_at(const std::string& path, std::string_view state, const QueryKey& key) {
  const size_t line = std::min(state.find('\n'), state.size());
  return write_whole(path, fmt::format("{}\n{}{}", state.substr(0, line), key_line(key),
                                       state.substr(std::min(line + 1, state.size()))));
}

void remove_verdict(const wire::SessionId& session) {
  ::unlink(verdict_path(session).c_str());
}

wire::Verdict::Value read_verdict(const wire::SessionId& session) {
  auto text = read_file(verdict_path(session));
  if (!text.ok()) return text.error().err == ENOENT ? wire::Verdict::ABORTED : wire::Verdict::UNKNOWN;
  const std::string_view state = std::string_view(*text).substr(0, text->find('\n'));
  if (state == kLackingState) return wire::Verdict::LACKING;
  return state == kRunningState ? wire::Verdict::RUNNING : wire::Verdict::UNKNOWN;
}

std::optional<QueryKey> read_query_key(const wire::SessionId& session) {
  auto text = read_file(verdict_path(session));
  if (text.ok()) return find_key(text.value());
  if (text.error().err == ENOENT) return std::nullopt;
  return QueryKey{true, {}};
}

QueryKey find_key(std::string_view text) {
  QueryKey found;
  const auto hex = field(text, "key:");
  if (!hex) return found;
  found.secure = true;
  for (size_t i = 0; i < found.key.size() && 2 * i + 2 <= hex->size(); ++i) {
    unsigned value = 0;
    const char* digits = hex->data() + 2 * i;
    std::from_chars(digits, digits + 2, value, 16);
    found.key[i] = static_cast<std::byte>(value);
  }
  return found;
}

}  // namespace godwit::migration
