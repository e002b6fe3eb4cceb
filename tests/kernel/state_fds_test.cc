// Descriptors against the real kernel: what is captured of a frozen process is built on a shell, and a
// capture of that must say the same. The source must be as it was.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "engine/base/files.h"
#include "engine/state/address_space.h"
#include "engine/state/memory_objects.h"
#include "tests/kernel/state_fds_fixture.h"

namespace godwit::state {
namespace {

using testing::Contains;
using testing::Field;
using testing::HasSubstr;
using testing::Not;

class DescriptorsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: ptrace of a child, namespaces";
    std::string pattern = testing::TempDir() + "godwit_fds_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override {
    for (const std::string& file : made_) ::unlink(file.c_str());
    ::rmdir(directory_.c_str());
  }
  std::string path(const std::string& name) {
    made_.push_back(directory_ + "/" + name);
    return made_.back();
  }
  std::string file(const std::string& name, const std::string& contents) {
    const std::string at = path(name);
    const Fd fd(::open(at.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    EXPECT_EQ(::write(fd.get(), contents.data(), contents.size()), static_cast<ssize_t>(contents.size()));
    return at;
  }
  std::string directory_;

 private:
  std::vector<std::string> made_;
};

std::string read_all(const Fd& fd) {
  std::array<char, 4096> buffer;
  const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
  return got < 0 ? std::string(strerror(errno)) : std::string(buffer.data(), static_cast<size_t>(got));
}

void set_flags(int fd, int flags) {
  must(::fcntl(fd, F_SETFL, must(::fcntl(fd, F_GETFL)) | flags));
}

// ---- files
// -------------------------------------------------------------------------------------------------------

TEST_F(DescriptorsTest, FilesKeepOffsetFlagsAndSharing) {
  const std::string log = file("log", "0123456789");
  Source source([&] {
    put(must(::open(log.c_str(), O_RDWR | O_APPEND | O_CLOEXEC)), 3);
    must(static_cast<int>(::lseek(3, 4, SEEK_SET)));
    put(must(::open(log.c_str(), O_RDONLY | O_NONBLOCK)), 5);
    must(static_cast<int>(::lseek(5, 1000, SEEK_SET)));
    must(::dup3(3, 9, 0));
    must(::dup3(3, 300, O_CLOEXEC));
    put(must(::open("/etc", O_RDONLY | O_DIRECTORY)), 4);
    put(must(::open("/etc/passwd", O_PATH)), 6);
    put(must(::open("/dev/null", O_RDWR)), 0);
    put(must(::open("/dev/urandom", O_RDONLY | O_CLOEXEC)), 1);
  });
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(read_all(destination->fd(9)), "456789");
  EXPECT_EQ(::lseek(destination->fd(3).get(), 0, SEEK_CUR), 10) << "3 and 9 share one offset";
}

TEST_F(DescriptorsTest, AFileOfAnotherSizeIsRefused) {
  const std::string data = file("data", "0123456789");
  Source source([&] { put(must(::open(data.c_str(), O_RDONLY)), 3); });
  Destination destination;
  source.freeze();
  const auto message = source.capture();
  ASSERT_TRUE(message.ok());
  ASSERT_EQ(::truncate(data.c_str(), 9), 0);
  const Status finished = destination.finish(message.value());
  ASSERT_FALSE(finished.ok());
  EXPECT_EQ(finished.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(finished.error().message(), HasSubstr(data + " (9 bytes here, 10 on the source)"));
}

TEST_F(DescriptorsTest, WhatWasPreparedIsReplacedWhenTheFileBehindTheNameChanged) {
  const std::string data = file("data", "old");
  Source source([&] { put(must(::open(data.c_str(), O_RDONLY)), 3); });
  Destination destination;
  ASSERT_EQ(text(destination.prepare(source.capture().value())), "");
  // As log rotation does: another file under the same name, opened with the same number.
  const std::string other = file("other", "fresh");
  Source later([&] { put(must(::open(other.c_str(), O_RDONLY)), 3); });
  ASSERT_EQ(::rename(other.c_str(), data.c_str()), 0);
  later.freeze();
  const auto message = later.capture();
  ASSERT_TRUE(message.ok()) << message.error().message();
  ASSERT_EQ(text(destination.finish(message.value())), "");
  EXPECT_EQ(read_all(destination.fd(3)), "fresh");
}

TEST_F(DescriptorsTest, NothingIsLeftBesideTheTable) {
  Source source([&] {
    int ends[2];
    must(::pipe(ends));
    put(ends[0], 10);
    put(ends[1], 11);
    must(::memfd_create("m", 0));
  });
  const auto destination = expect_round_trip(source);
  const auto process = tracee::Process::open(destination->pid());
  EXPECT_THAT(process.value().fds().value(), testing::ElementsAre(0, 10, 11));
}

TEST_F(DescriptorsTest, WhatAFailedAttemptLeftIsClosed) {
  Source source([&] { put(must(::eventfd(0, 0)), 4); });
  Destination destination;
  source.freeze();
  ASSERT_EQ(text(destination.run([](BuildContext&) -> Status {
              for (const int number : {0, 3, 5, 90}) ::dup2(::eventfd(0, 0), number);
              return {};
            })),
            "");
  ASSERT_EQ(text(destination.finish(source.capture().value())), "");
  const auto process = tracee::Process::open(destination.pid());
  EXPECT_THAT(process.value().fds().value(), testing::ElementsAre(4));
}

TEST_F(DescriptorsTest, WhatIsPreparedAndGoneIsClosed) {
  Source source([&] {
    must(::eventfd(0, 0));
    must(::eventfd(0, 0));
    must(::timerfd_create(CLOCK_MONOTONIC, 0));
  });
  Source later([&] { must(::eventfd(0, 0)); });
  Destination destination;
  ASSERT_EQ(text(destination.prepare(source.capture().value())), "");
  later.freeze();
  ASSERT_EQ(text(destination.finish(later.capture().value())), "");
  const auto process = tracee::Process::open(destination.pid());
  EXPECT_THAT(process.value().fds().value(), testing::ElementsAre(0));
}

TEST_F(DescriptorsTest, NumbersAboveTheParkingAreMadeRoomFor) {
  Source source([&] {
    put(must(::eventfd(7, 0)), 800);
    put(must(::memfd_create("m", 0)), 602);
    put(must(::eventfd(9, 0)), 600);
  });
  const auto destination = expect_round_trip(source);
  uint64_t value = 0;
  EXPECT_EQ(::read(destination->fd(600).get(), &value, sizeof value), 8);
  EXPECT_EQ(value, 9U);
}

TEST_F(DescriptorsTest, DeletedFilesAreCarried) {
  const std::string data = file("data", std::string(5000, 'x'));
  Source source([&] {
    put(must(::open(data.c_str(), O_RDWR)), 3);
    put(must(::open(data.c_str(), O_WRONLY | O_APPEND)), 4);
    must(::unlink(data.c_str()));
    must(::fchmod(3, 0640));
    must(static_cast<int>(::lseek(3, 100, SEEK_SET)));
    const int never = must(::open(data.substr(0, data.rfind('/')).c_str(), O_TMPFILE | O_RDWR, 0600));
    must(::ftruncate(never, 3));
    // Its flags say how it was made; those of another look at it do not.
    put(must(::open(("/proc/self/fd/" + std::to_string(never)).c_str(), O_RDWR)), 5);
    must(::close(never));
  });
  EXPECT_FALSE(any_fatal(source.check()));
  const auto destination = expect_round_trip(source);
  struct stat status {};
  char last = 0;
  ASSERT_EQ(::fstat(destination->fd(3).get(), &status), 0);
  EXPECT_EQ(status.st_size, 5000);
  EXPECT_EQ(status.st_nlink, 0U);
  EXPECT_EQ(::pwrite(destination->fd(4).get(), "y", 1, 0), 1);  // appends
  EXPECT_EQ(::pread(destination->fd(3).get(), &last, 1, 5000), 1);
  EXPECT_EQ(last, 'y');
  ASSERT_EQ(::fstat(destination->fd(5).get(), &status), 0);
  EXPECT_EQ(status.st_size, 3);
}

/// It has another name, which nobody can find. Refused by check; in the freeze a bad instant.
TEST_F(DescriptorsTest, FilesUnderAnotherNameAreNamed) {
  const std::string data = file("data", "x");
  const std::string other = data + "-other";
  Source source([&] {
    put(must(::open(data.c_str(), O_RDONLY)), 3);
    must(::link(data.c_str(), other.c_str()));
    must(::unlink(data.c_str()));
  });
  EXPECT_THAT(source.check(), Contains(Field(&Finding::what, HasSubstr("name does not lead"))));
  source.freeze();
  const auto captured = source.capture();
  ASSERT_FALSE(captured.ok());
  EXPECT_EQ(captured.error().kind, ErrorKind::kRetry);
  EXPECT_THAT(captured.error().message(), HasSubstr("name does not lead"));
}

TEST_F(DescriptorsTest, AHeldLockIsABadInstant) {
  const std::string data = file("data", "x");
  Source source([&] {
    put(must(::open(data.c_str(), O_RDWR)), 3);
    must(::flock(3, LOCK_EX));
  });
  const auto findings = source.check();
  EXPECT_THAT(findings, Contains(Field(&Finding::what, HasSubstr("lock"))));
  EXPECT_FALSE(any_fatal(findings));
  source.freeze();
  const auto captured = source.capture();
  ASSERT_FALSE(captured.ok());
  EXPECT_EQ(captured.error().kind, ErrorKind::kRetry);
  EXPECT_THAT(captured.error().subject, HasSubstr("fd 3"));
}

// ---- pipes
// -------------------------------------------------------------------------------------------------------

TEST_F(DescriptorsTest, PipesKeepTheirBytes) {
  Source source([&] {
    int ends[2];
    must(::pipe2(ends, O_CLOEXEC));
    put(ends[0], 3);
    put(ends[1], 4);
    set_flags(4, O_NONBLOCK);
    must(::fcntl(4, F_SETPIPE_SZ, 256 << 10));
    const std::string bytes(150'000, 'x');
    must(static_cast<int>(::write(4, bytes.data(), bytes.size())));
    must(static_cast<int>(::write(4, "end", 3)));
    // A second description of the reading end.
    put(must(::open("/proc/self/fd/3", O_RDONLY | O_NONBLOCK)), 7);
    must(::dup2(3, 8));
  });
  const auto destination = expect_round_trip(source);
  int waiting = 0;
  EXPECT_EQ(::ioctl(destination->fd(7).get(), FIONREAD, &waiting), 0);
  EXPECT_EQ(waiting, 150'003);
  EXPECT_EQ(::fcntl(destination->fd(8).get(), F_GETPIPE_SZ), 256 << 10);
}

TEST_F(DescriptorsTest, PacketsOfAPipeStayApart) {
  Source source([&] {
    int ends[2];
    must(::pipe2(ends, O_DIRECT));
    must(static_cast<int>(::write(ends[1], "one", 3)));
    must(static_cast<int>(::write(ends[1], "three", 5)));
  });
  const auto destination = expect_round_trip(source);
  const Fd reader = destination->fd(0);
  EXPECT_EQ(read_all(reader), "one");
  EXPECT_EQ(read_all(reader), "three");
}

TEST_F(DescriptorsTest, OneEndOfAPipeAlone) {
  Source source([&] {
    int ends[2];
    must(::pipe(ends));
    must(static_cast<int>(::write(ends[1], "rest", 4)));
    ::close(ends[1]);
    must(::pipe(ends));  // 1 and 2
    ::close(ends[0]);
  });
  const auto destination = expect_round_trip(source);
  const Fd reader = destination->fd(0);
  EXPECT_EQ(read_all(reader), "rest");
  EXPECT_EQ(read_all(reader), "");
  ::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(::write(destination->fd(2).get(), "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
}

TEST_F(DescriptorsTest, APipeToAnotherProcessIsRefused) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const std::string reopened = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(ends[0]);
  Source source([&] { put(must(::open(reopened.c_str(), O_RDONLY)), 3); });
  const auto findings = source.check();
  ::close(ends[0]);
  ::close(ends[1]);
  ASSERT_TRUE(any_fatal(findings));
  EXPECT_THAT(findings, Contains(Field(&Finding::why, HasSubstr("pid " + std::to_string(::getpid())))));
}

// ---- events
// ------------------------------------------------------------------------------------------------------

TEST_F(DescriptorsTest, EventAndSignalDescriptors) {
  Source source([&] {
    put(must(::eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK)), 3);
    put(must(::eventfd(5, EFD_CLOEXEC)), 4);
    const uint64_t large = 0xfffffffffffffff0;
    must(static_cast<int>(::write(3, &large, sizeof large)));
    sigset_t mask;
    ::sigemptyset(&mask);
    ::sigaddset(&mask, SIGUSR1);
    ::sigaddset(&mask, SIGRTMAX);
    put(must(::signalfd(-1, &mask, SFD_NONBLOCK)), 5);
  });
  const auto destination = expect_round_trip(source);
  uint64_t value = 0;
  EXPECT_EQ(::read(destination->fd(3).get(), &value, sizeof value), 8);
  EXPECT_EQ(value, 1U) << "a semaphore counts down";
  EXPECT_EQ(::read(destination->fd(4).get(), &value, sizeof value), 8);
  EXPECT_EQ(value, 5U);
}

// ---- epoll
// -------------------------------------------------------------------------------------------------------

void watch(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
  must(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

TEST_F(DescriptorsTest, InterestListsComeWithTheirData) {
  Source source([&] {
    put(must(::epoll_create1(EPOLL_CLOEXEC)), 3);
    put(must(::epoll_create1(0)), 4);
    put(must(::eventfd(1, 0)), 5);
    sigset_t mask;
    ::sigfillset(&mask);
    put(must(::signalfd(-1, &mask, 0)), 6);
    put(must(::eventfd(0, 0)), 7);
    watch(3, 4, EPOLLIN, 0x1122334455667788);
    watch(4, 5, EPOLLIN | EPOLLET, 55);
    watch(4, 6, EPOLLIN, 66);
    watch(4, 7, EPOLLIN | EPOLLEXCLUSIVE, 77);
    epoll_event event{};
    must(::epoll_wait(4, &event, 1, 0));  // the edge of 5 is taken
  });
  const auto destination = expect_round_trip(source);
  epoll_event events[4];
  ASSERT_EQ(::epoll_wait(destination->fd(4).get(), events, 4, 0), 1);
  EXPECT_EQ(events[0].data.u64, 55U) << "an edge is told again rather than lost";
}

TEST_F(DescriptorsTest, ADisarmedInterestStaysSo) {
  Source source([&] {
    put(must(::epoll_create1(0)), 3);
    put(must(::eventfd(1, 0)), 5);
    watch(3, 5, EPOLLIN | EPOLLONESHOT, 55);
    epoll_event event{};
    if (::epoll_wait(3, &event, 1, 0) != 1) ::_exit(1);
  });
  const auto destination = expect_round_trip(source);
  epoll_event event{};
  const Fd epoll = destination->fd(3);
  EXPECT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 0);
  event.events = EPOLLIN | EPOLLONESHOT;
  const Status armed = destination->run([&](BuildContext&) -> Status {
    if (::epoll_ctl(3, EPOLL_CTL_MOD, 5, &event) != 0) return fail_errno("epoll_ctl", "fd 5");
    return {};
  });
  EXPECT_EQ(text(armed), "");
  EXPECT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 1);
}

TEST_F(DescriptorsTest, AnInterestUnderANumberThatMeansSomethingElseNow) {
  Source source([&] {
    put(must(::epoll_create1(0)), 3);
    put(must(::eventfd(0, 0)), 5);
    watch(3, 5, EPOLLIN, 55);
    must(::dup2(5, 8));
    put(must(::eventfd(9, EFD_CLOEXEC)), 5);  // 5 is another one, the interest is in what is 8
    put(must(::eventfd(0, 0)), 6);
    watch(3, 6, EPOLLIN, 66);
    must(::dup2(6, 10));
    ::close(6);
  });
  const auto destination = expect_round_trip(source);
  const Fd epoll = destination->fd(3);
  epoll_event event{};
  EXPECT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 0) << "5 has a count, but is not watched";
  const uint64_t one = 1;
  ASSERT_EQ(::write(destination->fd(8).get(), &one, sizeof one), 8);
  ASSERT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 1);
  EXPECT_EQ(event.data.u64, 55U);
}

// ---- memfd
// -------------------------------------------------------------------------------------------------------

TEST_F(DescriptorsTest, MemfdsKeepNameSealsAndOffset) {
  Source source([&] {
    put(must(::memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC)), 3);
    must(static_cast<int>(::write(3, "contents", 8)));
    must(::fchmod(3, 0640));
    must(::fchown(3, 12, 34));
    put(must(::open("/proc/self/fd/3", O_RDONLY)), 4);
    must(static_cast<int>(::lseek(4, 2, SEEK_SET)));
    must(::fcntl(3, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW));
    put(must(::memfd_create("unsealable", 0)), 5);
  });
  const auto destination = expect_round_trip(source);
  EXPECT_EQ(read_all(destination->fd(4)), "ntents");
  EXPECT_EQ(::write(destination->fd(3).get(), "x", 1), -1);
  EXPECT_EQ(errno, EPERM);
}

/// A layout is old as soon as it is read: a memfd mapped where it tells of anonymous shared memory must not
/// be carried as such.
TEST_F(DescriptorsTest, AnObjectIsWhatIsMappedNow) {
  Source source([&] {
    const int memfd = must(::memfd_create("m", 0));
    must(::ftruncate(memfd, kPageSize));
    ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    ::close(memfd);
  });
  Layout layout = source.process().layout().take();
  std::erase_if(layout, [](const Vma& vma) { return !shows_object(vma); });
  ASSERT_EQ(layout.size(), 1U);
  const auto now = find_objects(source.process(), layout, {});
  ASSERT_TRUE(now.ok() && now.value().size() == 1);
  EXPECT_EQ(now.value()[0].info.kind(), wire::MemoryObject::MEMFD);
  EXPECT_EQ(now.value()[0].info.name(), "m");
  layout[0].path = "/dev/zero (deleted)";
  layout[0].inode += 1;
  const auto then = find_objects(source.process(), layout, {});
  ASSERT_TRUE(then.ok());
  EXPECT_TRUE(then.value().empty()) << then.value()[0].info.DebugString();
}

/// A private mapping is seen, then its object's size: in a running process it may have shrunk in between, and
/// grown again when the mapping's pages arrive.
TEST_F(DescriptorsTest, AMappingReachesBeyondItsObjectUntilAllHasArrived) {
  Destination destination;
  wire::MemoryObject object;
  object.set_id(object_key(1, 5));
  object.set_kind(wire::MemoryObject::MEMFD);
  object.set_name("m");
  object.set_size(kPageSize);
  Vma vma;
  vma.range = range_of(0x10000000, 0x10000000 + 4 * kPageSize);
  vma.prot = PROT_READ | PROT_WRITE;
  vma.kind = VmaKind::kFilePrivate;
  vma.device = 1;
  vma.inode = 5;
  vma.path = "/memfd:m (deleted)";
  AddressSpace space;
  SharedObject made;
  ASSERT_EQ(text(destination.run([&](BuildContext& context) -> Status {
              TRY(create_object(context, object));
              made = context.objects.at(object.id());
              return space.follow(context, {vma});
            })),
            "");
  const Fd memory(::open(fmt::format("/proc/{}/mem", destination.pid()).c_str(), O_RDWR));
  EXPECT_EQ(::pwrite(memory.get(), "x", 1, static_cast<off_t>(vma.range.start.value() + 3 * kPageSize)), 1);
  const auto size = [&] {
    struct stat status {};
    const auto fd = open_object(destination.pid(), made);
    return fd.ok() && ::fstat(fd.value().get(), &status) == 0 ? status.st_size : -1;
  };
  EXPECT_EQ(size(), off_t{4 * kPageSize});
  ASSERT_EQ(text(destination.run(&trim_objects)), "");
  EXPECT_EQ(size(), off_t{kPageSize});
}

// ---- the unknown
// -------------------------------------------------------------------------------------------------

TEST_F(DescriptorsTest, SignalOwners) {
  Source source([&] {
    int ends[2];
    must(::pipe(ends));
    must(::fcntl(ends[0], F_SETOWN, ::getpid()));
    must(::fcntl(ends[0], F_SETSIG, SIGRTMIN));
    set_flags(ends[0], O_ASYNC);
  });
  const auto destination = expect_round_trip(source);
  f_owner_ex owner{};
  EXPECT_EQ(::fcntl(destination->fd(0).get(), F_GETOWN_EX, &owner), 0);
  EXPECT_EQ(owner.pid, destination->pid());
  EXPECT_EQ(::fcntl(destination->fd(0).get(), F_GETSIG), SIGRTMIN);
}

TEST_F(DescriptorsTest, ADamagedTableIsRefused) {
  Destination destination;
  EXPECT_EQ(destination.finish("\xff\xff rubbish").error().kind, ErrorKind::kCorrupt);
  wire::DescriptorTable table;
  auto* description = table.add_descriptions();
  description->set_room("eventfd");
  description->set_key("k");
  EXPECT_EQ(destination.finish(table.SerializeAsString()).error().kind, ErrorKind::kCorrupt) << "no number";
  description->add_numbers()->set_number(1U << 30);
  EXPECT_EQ(destination.finish(table.SerializeAsString()).error().kind, ErrorKind::kCorrupt) << "too high";
  description->mutable_numbers(0)->set_number(3);
  *table.add_descriptions() = table.descriptions(0);
  table.mutable_descriptions(1)->set_key("l");
  EXPECT_EQ(destination.finish(table.SerializeAsString()).error().kind, ErrorKind::kCorrupt)
      << "a number twice";
  table.mutable_descriptions(1)->mutable_numbers(0)->set_number(4);
  table.mutable_descriptions(1)->set_room("telepathy");
  EXPECT_EQ(destination.finish(table.SerializeAsString()).error().kind, ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace godwit::state
