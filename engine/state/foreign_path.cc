#include "engine/state/foreign_path.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include <algorithm>

namespace godwit::state {

Status require_plain_path(std::string_view path, const char* use) {
  const auto refuse = [&](const char* why) {
    return fail(ErrorKind::kCorrupt, use, std::string(path.substr(0, 200)), why);
  };
  if (!path.starts_with('/')) return refuse("the path is not absolute");
  if (path.size() >= PATH_MAX) return refuse("the path is too long");
  if (path.find('\0') != std::string_view::npos) return refuse("the path has a NUL byte");
  if (path == "/") return {};
  for (size_t begin = 1; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..")
      return refuse("the path has a part that no kernel reports: \".\", \"..\" or nothing");
    begin = end + 1;
  }
  return {};
}

Result<Fd> open_foreign_file(const std::string& path, bool writable, const char* use) {
  TRY(require_plain_path(path, use));
  // Neither a pipe nor a device may keep us waiting or do something at its open.
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return fail_errno(use, path);
  const auto not_regular = [&] {
    return fail(ErrorKind::kUnsupported, use, path, "it is no regular file on this host");
  };
  if (!S_ISREG(found.st_mode)) return not_regular();
  const int flags = writable ? O_RDWR | O_NOFOLLOW : O_RDONLY;
  Fd file(::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file.valid() && errno == ELOOP)
    return fail(ErrorKind::kUnsupported, use, path,
                "it is a symbolic link on this host, and is not written through: put the file itself there");
  if (!file.valid()) return fail_errno(use, path);
  if (::fstat(file.get(), &found) != 0) return fail_errno(use, path);
  if (!S_ISREG(found.st_mode)) return not_regular();
  return file;
}

}  // namespace godwit::state
