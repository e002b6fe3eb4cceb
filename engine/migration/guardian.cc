#include "engine/migration/guardian.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "engine/address/address_undo.h"
#include "engine/base/clock.h"
#include "engine/base/files.h"
#include "engine/base/pidfd.h"
#include "engine/migration/control_server.h"
#include "engine/migration/journal.h"
#include "engine/migration/link.h"
#include "engine/tracee/frozen.h"
#include "engine/tracee/injector.h"

namespace godwit::migration {

enum : uint32_t { kIdle, kTouching, kStopping, kCommitted, kDeparting, kDismissed };

struct Guardian::Shared {
  std::atomic<uint32_t> phase;
  pid_t target;
  wire::SessionId session;
  QueryKey key;
  std::atomic<uint32_t> undo_size;
  char undo[60000];
};

Guardian::Shared& Guardian::shared() const {
  return *reinterpret_cast<Shared*>(memory_.data());
}

// ---- the engine's side
// -------------------------------------------------------------------------------------------

Result<Guardian> Guardian::start(pid_t target, const LinkOptions& link) {
  Guardian made;
  made.memory_ = TRY(Mapping::create(sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS));
  made.shared().target = target;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2", "the guardian");
  Fd reader(ends[0]);
  made.pipe_ = Fd(ends[1]);
  const pid_t engine = ::getpid();
  made.pid_ = ::fork();
  if (made.pid_ < 0) return fail_errno("fork", "the guardian");
  if (made.pid_ == 0) {
    made.pipe_.reset();
    live(made.shared(), reader.get(), engine, link);
    ::_exit(0);
  }
  return made;
}

Guardian::~Guardian() {
  if (pipe_.valid()) dismiss();
}

void Guardian::touching() {
  shared().phase.store(kTouching);
}
void Guardian::stopping() {
  shared().phase.store(kStopping);
}
void Guardian::committing(const wire::SessionId& session, const QueryKey& key) {
  shared().session = session;
  shared().key = key;
  shared().phase.store(kCommitted);
}
void Guardian::departing() {
  shared().phase.store(kDeparting);
}

Status Guardian::remember_addresses(const std::string& undo) {
  if (undo.size() > sizeof(Shared::undo))
    return fail(ErrorKind::kUnsupported, "remember an address move", fmt::format("{} bytes", undo.size()),
                "move fewer addresses");
  std::memcpy(shared().undo, undo.data(), undo.size());
  shared().undo_size.store(static_cast<uint32_t>(undo.size()));
  return {};
}

void Guardian::dismiss() {
  shared().phase.store(kDismissed);
  pipe_.reset();
  ::waitpid(pid_, nullptr, 0);
}

// ---- the guardian's side
// -----------------------------------------------------------------------------------------

namespace {

constexpr Nanos kPatience = std::chrono::seconds(60);

void wait_for_exit(pid_t pid) {
  auto pidfd = PidFd::open(pid);
  if (!pidfd.ok()) return;
  pollfd p{pidfd->get(), POLLIN, 0};
  ::poll(&p, 1, 10'000);
}

void pause_for(Nanos time) {
  const timespec ts = to_timespec(time);
  ::nanosleep(&ts, nullptr);
}

/// A dying engine is still the tracer for a moment.
Result<tracee::Frozen> freeze_when_free(const tracee::Process& process) {
  for (int attempt = 0;; ++attempt) {
    auto frozen = tracee::Frozen::freeze(process);
    if (frozen.ok() || frozen.error().kind != ErrorKind::kDenied || attempt == 1000) return frozen;
    pause_for(std::chrono::milliseconds(1));
  }
}

/// A userfaultfd in the target is ours: check() refuses programs that use one.
Status close_leftover_userfaultfds(tracee::Frozen& frozen) {
  tracee::Batch batch;
  const tracee::Process& process = frozen.process();
  for (const int fd : TRY(process.fds())) {
    auto link = read_link(process.path(fmt::format("fd/{}", fd)));
    if (link.ok() && *link == "anon_inode:[userfaultfd]")
      batch.call_may_fail(SYS_close, {fd}, "close a userfaultfd");
  }
  if (batch.empty()) return {};
  auto injector = TRY(tracee::Injector::create(frozen));
  TRY(injector->run(process.pid(), batch));
  return injector->finish();
}

/// A socket in repair mode neither sends nor closes properly. Turned off without a window probe.
void leave_repair_mode(const tracee::Process& process) {
  auto fds = process.fds();
  if (!fds.ok()) return;
  for (const int number : *fds) {
    auto link = read_link(process.path(fmt::format("fd/{}", number)));
    if (!link.ok() || !link->starts_with("socket:")) continue;
    auto fd = process.pidfd().get_fd(number);
    if (!fd.ok()) continue;
    int repair = 0;
    socklen_t size = sizeof repair;
    const bool on =
        ::getsockopt(fd->get(), IPPROTO_TCP, TCP_REPAIR, &repair, &size) == 0 && repair == TCP_REPAIR_ON;
    constexpr int kOffWithoutProbe = -1;  // TCP_REPAIR_OFF_NO_WP, linux/tcp.h
    if (on) ::setsockopt(fd->get(), IPPROTO_TCP, TCP_REPAIR, &kOffWithoutProbe, sizeof kOffWithoutProbe);
  }
}

void resolve_committed(pid_t target, const wire::SessionId& session, const QueryKey& key,
                       const LinkOptions& options, const std::string& undo) {
  const auto addresses = address::AddressUndo::from_text(undo);
  const Nanos until = monotonic_now() + kPatience;
  while (monotonic_now() < until) {
    const auto verdict = ask_verdict(options, session, key);
    if (verdict.ok() && verdict.value() == wire::Verdict::RUNNING) {
      ::kill(target, SIGKILL);
      remove_in_doubt(target);
      if (addresses.ok()) (void)address::depart(addresses.value());
      return;
    }
    // The copy runs and lacks pages that are here alone: the original neither goes nor runs. A person
    // decides.
    if (verdict.ok() && verdict.value() == wire::Verdict::LACKING) return;
    if (verdict.ok() && verdict.value() == wire::Verdict::ABORTED) {
      if (addresses.ok()) (void)address::undo(addresses.value());
      (void)restore_target(target, true);
      remove_in_doubt(target);
      return;
    }
    pause_for(std::chrono::milliseconds(200));
  }
}

}  // namespace

Status restore_target(pid_t pid, bool stopped) {
  const auto process = TRY(tracee::Process::open(pid));
  auto frozen = TRY(freeze_when_free(process));
  TRY(tracee::remove_leftover_scratch(frozen));
  TRY(close_leftover_userfaultfds(frozen));
  leave_repair_mode(process);
  if (stopped) TRY(frozen.undo_stop());
  return frozen.finish();
}

void Guardian::live(Shared& shared, int engine_pipe, pid_t engine, const LinkOptions& link) {
  ::setsid();
  ::prctl(PR_SET_NAME, "godwit-guard");
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd < 3; ++fd) ::dup2(null.get(), fd);
  char byte = 0;
  while (::read(engine_pipe, &byte, 1) < 0 && errno == EINTR) {
  }
  const uint32_t phase = shared.phase.load();
  if (phase == kDismissed) return;
  wait_for_exit(engine);
  remove_dead_socket(job_path(shared.target));
  const std::string undo(shared.undo, shared.undo_size.load());
  if (phase == kCommitted) {
    resolve_committed(shared.target, shared.session, shared.key, link, undo);
    return;
  }
  if (!undo.empty()) {
    const auto addresses = address::AddressUndo::from_text(undo);
    if (addresses.ok())
      (void)(phase == kDeparting ? address::depart(addresses.value()) : address::undo(addresses.value()));
  }
  if (phase == kDeparting) return;
  if (phase != kIdle) (void)restore_target(shared.target, phase == kStopping);
}

}  // namespace godwit::migration
