#include "engine/migration/control_server.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "engine/base/files.h"
#include "engine/migration/control_protocol.h"
#include "engine/migration/journal.h"

namespace godwit::migration {
namespace {

constexpr int kLookMillis = 100;
constexpr size_t kMaxClients = 16;
constexpr std::string_view kPrefix = "job.", kSuffix = ".sock";

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(ErrorKind::kUsage, "name a socket", path, "the path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<Fd> connect_to(const std::string& path, int flags) {
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!fd.valid()) return fail_errno("socket", path);
  const sockaddr_un address = TRY(address_of(path));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail_errno("connect", path);
  return fd;
}

Status bind_to(const Fd& fd, const std::string& path) {
  const sockaddr_un address = TRY(address_of(path));
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return {};
  if (errno != EADDRINUSE) return fail_errno("bind", path);
  if (connect_to(path, SOCK_NONBLOCK).ok())
    return fail(ErrorKind::kRefused, "listen", path, "another engine is at work on this process");
  // Its engine is dead.
  ::unlink(path.c_str());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail_errno("bind", path);
  return {};
}

/// ORDER: one engine at a time looks whether a socket is dead, so that none takes away a living one.
Result<Fd> lock_folder_of(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/'));
  Fd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock.valid() || ::flock(lock.get(), LOCK_EX) != 0) return fail_errno("flock", folder);
  return lock;
}

Result<Fd> listen_at(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/'));
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("mkdir", folder);
  const Fd lock = TRY(lock_folder_of(path));
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return fail_errno("socket", path);
  TRY(bind_to(fd, path));
  if (::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), kMaxClients) != 0)
    return fail_errno("listen", path);
  return fd;
}

/// SAFETY: whoever controls a migration can stop a process of somebody else, or send it on its way.
bool may_control(const Fd& client) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(client.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         (peer.uid == 0 || peer.uid == ::geteuid());
}

/// False unless all of it is with the kernel: whoever does not read its answers is let go.
bool say(const Fd& client, std::string line) {
  line += '\n';
  return ::send(client.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(line.size());
}

}  // namespace

std::string job_path(pid_t pid) {
  return fmt::format("{}/{}{}{}", kJournalFolder, kPrefix, pid, kSuffix);
}

void remove_dead_socket(const std::string& path) {
  const auto lock = lock_folder_of(path);
  if (!lock.ok()) return;
  const auto connected = connect_to(path, SOCK_NONBLOCK);
  if (!connected.ok() && connected.error().err == ECONNREFUSED) ::unlink(path.c_str());
}

Result<std::unique_ptr<ControlServer>> ControlServer::start(Control& control, const std::string& path) {
  std::unique_ptr<ControlServer> made(new ControlServer(control, path));
  made->stop_ = Fd(::eventfd(0, EFD_CLOEXEC));
  if (!made->stop_.valid()) return fail_errno("eventfd", "the control socket");
  made->listener_ = TRY(listen_at(path));
  // ORDER: signals are for the migrating thread; this one is born with all of them blocked.
  sigset_t all, old;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &old);
  made->thread_ = std::thread([server = made.get()] { server->run(); });
  ::pthread_sigmask(SIG_SETMASK, &old, nullptr);
  ::pthread_setname_np(made->thread_.native_handle(), "godwit-control");
  return made;
}

ControlServer::~ControlServer() {
  if (!thread_.joinable()) return;
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
  // ORDER: the name first, for it may belong to another engine once nobody listens.
  ::unlink(path_.c_str());
}

void ControlServer::run() {
  for (;;) {
    std::vector<pollfd> wanted{{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    for (const Client& client : clients_) wanted.push_back({client.fd.get(), POLLIN, 0});
    ::poll(wanted.data(), wanted.size(), kLookMillis);
    if (wanted[0].revents != 0) return;
    control_.look_around(monotonic_now());
    for (size_t i = clients_.size(); i-- > 0;) {
      if (wanted[i + 2].revents == 0 || listen_to(clients_[i])) continue;
      clients_.erase(clients_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (wanted[1].revents != 0) welcome();
  }
}

void ControlServer::welcome() {
  Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) return;
  if (!may_control(fd)) {
    say(fd,
        encode_error(fail(ErrorKind::kDenied, "control", path_, "only root and the engine's own user may")));
    return;
  }
  // The one that came first has had its time.
  if (clients_.size() == kMaxClients) clients_.erase(clients_.begin());
  clients_.push_back({std::move(fd), {}});
}

bool ControlServer::listen_to(Client& client) {
  char piece[kMaxRequest];
  const ssize_t got = ::recv(client.fd.get(), piece, sizeof piece, MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  client.text.append(piece, static_cast<size_t>(got));
  for (size_t end = 0; (end = client.text.find('\n')) != std::string::npos;) {
    const std::string line = client.text.substr(0, end);
    client.text.erase(0, end + 1);
    if (!say(client.fd, serve(control_, line))) return false;
  }
  if (client.text.size() <= kMaxRequest) return true;
  say(client.fd, serve(control_, client.text));  // which says that it is too long
  return false;
}

// ---- the asking side
// ------------------------------------------------------------------------------------------------

Result<std::vector<pid_t>> list_jobs() {
  std::vector<pid_t> jobs;
  DIR* const folder = ::opendir(kJournalFolder);
  if (folder == nullptr) {
    if (errno == ENOENT) return jobs;
    return fail_errno("opendir", kJournalFolder);
  }
  while (const dirent* entry = ::readdir(folder)) {
    std::string_view name = entry->d_name;
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    name.remove_prefix(kPrefix.size());
    name.remove_suffix(std::min(name.size(), kSuffix.size()));
    const auto pid = parse_number(name);
    if (pid && connect_to(job_path(static_cast<pid_t>(*pid)), SOCK_NONBLOCK).ok())
      jobs.push_back(static_cast<pid_t>(*pid));
  }
  ::closedir(folder);
  std::sort(jobs.begin(), jobs.end());
  return jobs;
}

Result<std::string> ask_job(const std::string& path, const std::string& request) {
  auto connected = connect_to(path, 0);
  if (!connected.ok() && (connected.error().err == ENOENT || connected.error().err == ECONNREFUSED))
    return fail(ErrorKind::kRefused, "find the job", path, "nothing is under way; see `godwit status`");
  const Fd fd = TRY(std::move(connected));
  const timeval patience{10, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  // Whoever may not ask is answered and cut off, perhaps before it has asked.
  if (!say(fd, request) && errno != EPIPE) return fail_errno("send", path);
  std::string answer;
  while (answer.find('\n') == std::string::npos) {
    char piece[4096];
    const ssize_t got = ::recv(fd.get(), piece, sizeof piece, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return fail(ErrorKind::kTimeout, "wait for an answer", path);
    if (got < 0) return fail_errno("recv", path);
    if (got == 0) return fail(ErrorKind::kRefused, "wait for an answer", path, "the job has just ended");
    answer.append(piece, static_cast<size_t>(got));
  }
  return answer.substr(0, answer.find('\n'));
}

}  // namespace godwit::migration
