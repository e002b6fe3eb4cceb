#include "tests/kernel/state_fds_fixture.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>

#include "engine/state/memory_objects.h"
#include "engine/tracee/memory.h"
#include "engine/wire/rooms_tcp.pb.h"

namespace godwit::state {
namespace {

constexpr int kReadyNumber = 900;
constexpr pid_t kInnerPid = 4242;
constexpr int kParkingBase = 600;

[[noreturn]] void be_source(int ready, const std::function<void()>& setup) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(ready, kReadyNumber);
  ::syscall(SYS_close_range, 0U, static_cast<unsigned>(kReadyNumber - 1), 0U);
  ::syscall(SYS_close_range, static_cast<unsigned>(kReadyNumber + 1), ~0U, 0U);
  setup();
  must(static_cast<int>(::write(kReadyNumber, "k", 1)));
  ::close(kReadyNumber);
  for (;;) ::pause();
}

Status bring_up_loopback() {
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail_errno("socket", "loopback");
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  const int done = ::ioctl(fd, SIOCSIFFLAGS, &request);
  const int err = errno;
  ::close(fd);
  return done == 0 ? Status() : fail_errno("ioctl(SIOCSIFFLAGS)", "lo", err);
}

Result<std::string> capture_process(const tracee::Process& process, tracee::Frozen* frozen,
                                    ebpf::OpenFiles* open_files = nullptr) {
  const auto memory = TRY(tracee::Memory::open(process.pid()));
  const Intent intent;
  CaptureContext ctx{process, memory, intent};
  ctx.files = TRY(read_open_files(process));
  ctx.frozen = frozen;
  ctx.open_files = open_files;
  return capture_descriptors(ctx);
}

/// Numbers that differ between two processes, by order of appearance.
class Ordinals {
 public:
  uint64_t operator()(uint64_t number) {
    return number == 0 ? 0 : seen_.try_emplace(number, seen_.size() + 1).first->second;
  }

 private:
  std::map<uint64_t, uint64_t> seen_;
};

template <typename Message>
std::string printed(const std::string& payload, const std::function<void(Message&)>& neutralise) {
  Message message;
  EXPECT_TRUE(message.ParseFromString(payload));
  neutralise(message);
  return message.ShortDebugString();
}

std::string print_payload(const wire::Description& d, Ordinals& ordinal) {
  if (d.room() == "pipe")
    return printed<wire::PipeState>(d.payload(), [&](auto& m) { m.set_pipe(ordinal(m.pipe())); });
  if (d.room() == "memfd")
    return printed<wire::MemfdState>(d.payload(), [&](auto& m) { m.set_object(ordinal(m.object())); });
  if (d.room() == "timerfd")
    return printed<wire::TimerFdState>(d.payload(), [](auto& m) {
      m.set_remaining_ns(m.remaining_ns() == 0 ? 0 : 1);
      m.clear_clock_now_ns();
      m.clear_settime_flags();
    });
  if (d.room() == "unix-socket")
    return printed<wire::UnixSocketState>(d.payload(), [&](auto& m) {
      m.set_inode(ordinal(m.inode()));
      m.set_peer(ordinal(m.peer()));
    });
  if (d.room() == "epoll")
    return printed<wire::EpollState>(d.payload(), [](auto& m) {
      // The kernel lists them by their addresses.
      std::sort(m.mutable_items()->begin(), m.mutable_items()->end(),
                [](const auto& a, const auto& b) { return a.number() < b.number(); });
    });
  if (d.room() == "udp") return printed<wire::UdpState>(d.payload(), [](auto&) {});
  if (d.room() == "tcp") return printed<wire::TcpState>(d.payload(), [](auto&) {});
  if (d.room() == "eventfd") return printed<wire::EventFdState>(d.payload(), [](auto&) {});
  if (d.room() == "signalfd") return printed<wire::SignalFdState>(d.payload(), [](auto&) {});
  if (d.room() == "device-file") return printed<wire::DeviceFileState>(d.payload(), [](auto&) {});
  return printed<wire::RegularFileState>(d.payload(), [&](auto& m) {
    if (m.object() == 0) return;
    m.set_object(ordinal(m.object()));
    m.set_inode(ordinal(m.inode()));
    m.set_path(m.path().substr(0, m.path().rfind('/')));
  });
}

}  // namespace

int must(int result) {
  if (result >= 0) return result;
  ::_exit(errno);
}

void put(int fd, int number) {
  if (fd == number) return;
  must(::dup3(fd, number, ::fcntl(fd, F_GETFD) == FD_CLOEXEC ? O_CLOEXEC : 0));
  ::close(fd);
}

std::string text(const Status& status) {
  return status.ok() ? "" : status.error().message();
}

// ---- Source
// ------------------------------------------------------------------------------------------------------

Source::Source(const std::function<void()>& setup) {
  int ready[2];
  EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  pid_ = ::fork();
  if (pid_ == 0) be_source(ready[1], setup);
  ::close(ready[1]);
  char byte = 0;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1) << "the setup of the source failed";
  EXPECT_EQ(::read(ready[0], &byte, 1), 0);  // until the child has closed its end
  ::close(ready[0]);
  auto opened = tracee::Process::open(pid_);
  EXPECT_TRUE(opened.ok());
  if (opened.ok()) process_.emplace(opened.take());
}

Source::~Source() {
  if (frozen_) (void)frozen_->finish().ok();
  frozen_.reset();
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

tracee::Frozen& Source::freeze() {
  auto frozen = tracee::Frozen::freeze(*process_);
  EXPECT_TRUE(frozen.ok()) << frozen.error().message();
  return frozen_.emplace(frozen.take());
}

void Source::thaw() {
  EXPECT_EQ(text(frozen_->finish()), "");
  frozen_.reset();
}

Result<std::string> Source::capture() {
  return capture_process(*process_, frozen_ ? &*frozen_ : nullptr, open_files_ ? &*open_files_ : nullptr);
}

Status Source::ask_kernel() {
  open_files_.emplace(TRY(ebpf::OpenFiles::create(pid_)));
  return {};
}

Findings Source::check() {
  Findings findings;
  const auto memory = tracee::Memory::open(pid_);
  const auto files = read_open_files(*process_);
  const Layout layout;
  const Intent intent;
  EXPECT_TRUE(memory.ok() && files.ok());
  EXPECT_EQ(
      text(check_descriptors({*process_, memory.value(), layout, files.value(), intent, nullptr}, findings)),
      "");
  return findings;
}

// ---- Destination
// -------------------------------------------------------------------------------------------------

Destination::Destination(Nanos monotonic_offset) {
  auto thread = tracee::ShellThread::start();
  EXPECT_TRUE(thread.ok()) << thread.error().message();
  thread_ = thread.take();
  EXPECT_EQ(text(thread_->call([&]() -> Status {
              // A network of its own: names and ports of the source are free there.
              if (::unshare(CLONE_NEWNET) != 0) return fail_errno("unshare", "the shell's thread");
              TRY(bring_up_loopback());
              shell_ = TRY(tracee::Shell::spawn(
                  {.pid = kInnerPid, .new_pid_namespace = true, .monotonic_offset = monotonic_offset}));
              context_ = std::make_unique<BuildContext>(
                  BuildContext{.shell = *shell_, .pid = kInnerPid, .intent = intent_});
              context_->parking_base = kParkingBase;
              pid_ = shell_->pid();
              return {};
            })),
            "");
}

Destination::~Destination() {
  (void)thread_
      ->call([&]() -> Status {
        context_.reset();
        shell_.reset();
        return {};
      })
      .ok();
}

Status Destination::run(const std::function<Status(BuildContext&)>& work) {
  return thread_->call([&] { return work(*context_); });
}

void Destination::carry_objects(Source& source) {
  const auto files = read_open_files(source.process());
  auto objects = find_objects(source.process(), {}, files.value());
  ASSERT_TRUE(objects.ok());
  for (const ObjectSource& object : objects.value()) {
    SharedObject made;
    ASSERT_EQ(text(run([&](BuildContext& ctx) -> Status {
                TRY(create_object(ctx, object.info));
                made = ctx.objects.at(object.info.id());
                return {};
              })),
              "");
    const auto to = open_object(pid_, made);
    ASSERT_TRUE(to.ok()) << to.error().message();
    std::string contents(made.size, '\0');
    ASSERT_EQ(::pread(object.fd.get(), contents.data(), contents.size(), 0),
              static_cast<ssize_t>(contents.size()));
    ASSERT_EQ(::pwrite(to.value().get(), contents.data(), contents.size(), 0),
              static_cast<ssize_t>(contents.size()));
  }
}

Status Destination::prepare(const std::string& description) {
  return run([&](BuildContext& ctx) { return prepare_descriptors(ctx, description); });
}

Status Destination::finish(const std::string& message) {
  return run([&](BuildContext& ctx) -> Status {
    TRY(finish_descriptors(ctx, message));
    close_objects(ctx);
    return {};
  });
}

Status Destination::resume() {
  return run([](BuildContext& ctx) -> Status {
    for (const auto& action : ctx.at_resume) TRY(action());
    return {};
  });
}

Result<std::string> Destination::capture(tracee::Frozen& any_frozen) {
  const auto process = TRY(tracee::Process::open(pid_));
  return capture_process(process, &any_frozen);
}

Fd Destination::fd(int number) const {
  auto process = tracee::Process::open(pid_);
  EXPECT_TRUE(process.ok());
  auto copy = process.value().pidfd().get_fd(number);
  EXPECT_TRUE(copy.ok()) << number;
  return copy.ok() ? copy.take() : Fd();
}

// ---- comparing
// ---------------------------------------------------------------------------------------------------

std::vector<std::string> comparable(const std::string& table) {
  wire::DescriptorTable parsed;
  EXPECT_TRUE(parsed.ParseFromString(table));
  std::vector<std::string> lines;
  Ordinals ordinal;
  for (wire::Description& description : *parsed.mutable_descriptions()) {
    const std::string payload = print_payload(description, ordinal);
    description.clear_key();
    description.clear_subject();
    description.clear_payload();
    lines.push_back(description.ShortDebugString() + " " + payload);
  }
  return lines;
}

std::unique_ptr<Destination> expect_round_trip(Source& source) {
  auto destination = std::make_unique<Destination>();
  const auto description = source.capture();
  EXPECT_TRUE(description.ok()) << description.error().message();
  destination->carry_objects(source);
  EXPECT_EQ(text(destination->prepare(description.value())), "");
  auto& frozen = source.freeze();
  const auto message = source.capture();
  EXPECT_TRUE(message.ok()) << message.error().message();
  if (!message.ok()) return destination;
  EXPECT_EQ(text(destination->finish(message.value())), "");
  const auto again = source.capture();
  EXPECT_TRUE(again.ok());
  EXPECT_EQ(comparable(message.value()), comparable(again.value())) << "the source is not as it was";
  EXPECT_EQ(text(destination->resume()), "");
  const auto rebuilt = destination->capture(frozen);
  EXPECT_TRUE(rebuilt.ok()) << rebuilt.error().message();
  if (rebuilt.ok()) {
    EXPECT_EQ(comparable(message.value()), comparable(rebuilt.value()));
  }
  return destination;
}

}  // namespace godwit::state
