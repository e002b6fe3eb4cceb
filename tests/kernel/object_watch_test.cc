// Every way to write to shared memory shows in the next look at it, and reading it does not; against the
// running kernel. What this holds stands in docs/decisions/objects-by-hash.md.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "engine/base/fd.h"
#include "engine/base/units.h"
#include "engine/migration/object_watch.h"

namespace godwit::migration {
namespace {

constexpr size_t kBytes = 1_MiB;

class ObjectWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: BPF";
    auto watch = ObjectWatch::create();
    if (!watch.ok()) GTEST_SKIP() << watch.error().message();
    watch_.emplace(watch.take());
    object_ = Fd(::memfd_create("watched", MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(fd(), kBytes), 0);
    const std::string text(kBytes, 'a');
    ASSERT_EQ(::pwrite(fd(), text.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  }
  [[nodiscard]] int fd() const { return object_.get(); }
  ObjectLook look() {
    const int fds[] = {fd()};
    return watch_->look(fds).value().front();
  }
  /// A look from which on everything is told.
  ObjectLook settled() {
    for (;;)
      if (const ObjectLook now = look(); now.settled) return now;
  }
  bool tells(const std::function<void()>& change) {
    const ObjectLook before = settled();
    change();
    return !is_unchanged(before, look());
  }
  char* map(int flags = MAP_SHARED) const {
    void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, fd(), 0);
    EXPECT_NE(at, MAP_FAILED);
    return static_cast<char*>(at);
  }

  std::optional<ObjectWatch> watch_;
  Fd object_;
};

TEST_F(ObjectWatchTest, ReadingDoesNotShow) {
  char buffer[kPageSize];
  EXPECT_FALSE(tells([&] { ASSERT_EQ(::pread(fd(), buffer, sizeof buffer, 0), ssize_t{kPageSize}); }));
  EXPECT_FALSE(tells([&] {
    char* at = map(MAP_PRIVATE);
    at[0] = 'x';  // a page of its own
    ::munmap(at, kBytes);
  }));
  EXPECT_FALSE(tells([&] { ASSERT_EQ(::lseek(fd(), 5, SEEK_SET), 5); }));
  EXPECT_FALSE(tells([&] {
    const Fd another(::memfd_create("another", 0));
    ASSERT_EQ(::ftruncate(another.get(), kBytes), 0);
    void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, another.get(), 0);
    ::munmap(at, kBytes);
  }));
}

TEST_F(ObjectWatchTest, EveryCallThatWritesShows) {
  const std::string page(kPageSize, 'b');
  iovec part{const_cast<char*>(page.data()), page.size()};
  const Fd from(::memfd_create("from", 0));
  ASSERT_EQ(::write(from.get(), page.data(), page.size()), ssize_t{kPageSize});
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const Fd out(pipe[0]), in(pipe[1]);
  const auto rewind = [&](const Fd& f) { ::lseek(f.get(), 0, SEEK_SET); };
  const std::pair<const char*, std::function<ssize_t()>> ways[] = {
      {"write", [&] { return ::write(fd(), page.data(), page.size()); }},
      {"writev", [&] { return ::writev(fd(), &part, 1); }},
      {"pwrite", [&] { return ::pwrite(fd(), page.data(), page.size(), 0); }},
      {"pwritev2", [&] { return ::pwritev2(fd(), &part, 1, 0, 0); }},
      {"the same bytes again", [&] { return ::pwrite(fd(), page.data(), page.size(), 0); }},
      {"sendfile", [&] { return rewind(from), ::sendfile(fd(), from.get(), nullptr, kPageSize); }},
      {"copy_file_range",
       [&] { return rewind(from), ::copy_file_range(from.get(), nullptr, fd(), nullptr, kPageSize, 0); }},
      {"splice",
       [&] {
         off64_t at = 0;
         (void)!::write(in.get(), page.data(), page.size());
         return ::splice(out.get(), nullptr, fd(), &at, kPageSize, 0);
       }},
      {"punch a hole",
       [&] {
         return kPageSize + ::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPageSize);
       }},
      {"allocate", [&] { return kPageSize + ::fallocate(fd(), 0, kBytes, kPageSize); }},
      {"shrink", [&] { return kPageSize + ::ftruncate(fd(), kBytes / 2); }},
      {"grow", [&] { return kPageSize + ::ftruncate(fd(), kBytes); }},
      {"shrink and grow",
       [&] { return kPageSize + ::ftruncate(fd(), kBytes / 2) + ::ftruncate(fd(), kBytes); }},
      {"truncate by name",
       [&] {
         const Fd again(::open(fmt::format("/proc/self/fd/{}", fd()).c_str(), O_RDWR | O_TRUNC));
         return kPageSize + ::ftruncate(again.get(), kBytes);
       }},
  };
  for (const auto& [name, write] : ways) {
    ssize_t done = 0;
    EXPECT_TRUE(tells([&] { done = write(); })) << name;
    EXPECT_EQ(done, ssize_t{kPageSize}) << name << ": " << std::strerror(errno);
  }
}

TEST_F(ObjectWatchTest, RingsAndQueuesShow) {
  io_uring ring{};
  const std::string page(kPageSize, 'c');
  if (::io_uring_queue_init(4, &ring, 0) != 0) GTEST_SKIP() << "no io_uring";
  EXPECT_TRUE(tells([&] {
    io_uring_prep_write(::io_uring_get_sqe(&ring), fd(), page.data(), kPageSize, 0);
    io_uring_cqe* done = nullptr;
    ASSERT_EQ(::io_uring_submit(&ring), 1);
    ASSERT_EQ(::io_uring_wait_cqe(&ring, &done), 0);
    EXPECT_EQ(done->res, int{kPageSize});
  }));
  ::io_uring_queue_exit(&ring);
  EXPECT_TRUE(tells([&] {
    aio_context_t context = 0;
    ASSERT_EQ(::syscall(SYS_io_setup, 1, &context), 0);
    iocb block{};
    block.aio_lio_opcode = IOCB_CMD_PWRITE;
    block.aio_fildes = static_cast<uint32_t>(fd());
    block.aio_buf = reinterpret_cast<uint64_t>(page.data());
    block.aio_nbytes = page.size();
    iocb* blocks[] = {&block};
    ASSERT_EQ(::syscall(SYS_io_submit, context, 1, blocks), 1);
    io_event event{};
    ASSERT_EQ(::syscall(SYS_io_getevents, context, 1, 1, &event, nullptr), 1);
    EXPECT_EQ(event.res, int64_t{kPageSize});
    ::syscall(SYS_io_destroy, context);
  }));
}

TEST_F(ObjectWatchTest, WritesOfTheSameTickShow) {
  const char byte = 'd';
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(tells([&] { ASSERT_EQ(::pwrite(fd(), &byte, 1, i), 1); })) << i;
}

TEST_F(ObjectWatchTest, AMappingThatIsThereShows) {
  char* at = map();
  EXPECT_TRUE(tells([&] { at[0] = 'e'; }));
  ::munmap(at, kBytes);
  EXPECT_FALSE(tells([] {}));
}

TEST_F(ObjectWatchTest, AMappingThatWasThereShows) {
  EXPECT_TRUE(tells([&] {
    char* at = map();
    at[0] = 'f';
    ::munmap(at, kBytes);
  }));
  EXPECT_TRUE(tells([&] {
    char* at = map(MAP_SHARED_VALIDATE);
    ::munmap(at, kBytes);
  }));
  // Unmapped after the first look.
  char* at = map();
  EXPECT_TRUE(tells([&] {
    at[0] = 'g';
    ::munmap(at, kBytes);
  }));
}

TEST_F(ObjectWatchTest, AnotherProcessShows) {
  const auto in_child = [&](const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      work();
      ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  };
  EXPECT_FALSE(tells([&] { in_child([] {}); }));
  EXPECT_TRUE(tells([&] {
    in_child([&] {
      char* at = map();
      at[0] = 'h';
      ::munmap(at, kBytes);
    });
  }));
  EXPECT_TRUE(tells([&] {
    in_child([&] {
      if (::pwrite(fd(), "i", 1, 0) != 1) ::_exit(1);
    });
  }));
}

TEST_F(ObjectWatchTest, RemovedPagesShow) {
  char* at = map();
  EXPECT_TRUE(tells([&] {
    EXPECT_EQ(::madvise(at, kPageSize, MADV_REMOVE), 0);
    ::munmap(at, kBytes);
  }));
}

/// The number that mmap is given may stand for another file when the call returns.
TEST_F(ObjectWatchTest, ADescriptorThatChangesItsFileHidesNoMapping) {
  const Fd other(::memfd_create("other", 0));
  const Fd number(::dup(fd()));
  std::atomic<bool> stop{false};
  std::thread swapper([&] {
    while (!stop) {
      ::dup2(other.get(), number.get());
      ::dup2(fd(), number.get());
    }
  });
  int seen = 0;
  for (int i = 0; i < 300; ++i) {
    const ObjectLook before = settled();
    void* at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, number.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    const bool ours = look().mapped;
    ::munmap(at, kBytes);
    if (!ours) continue;
    ++seen;
    EXPECT_FALSE(is_unchanged(before, look()));
  }
  stop = true;
  swapper.join();
  EXPECT_GT(seen, 0);
}

/// Somebody writes while one looks, reads, and looks: what was vouched for is what was read.
TEST_F(ObjectWatchTest, WhatIsVouchedForIsWhatWasRead) {
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::string text(kBytes / 4, 'a');
    for (char c = 0; !stop; ++c) {
      std::fill(text.begin(), text.end(), c);
      EXPECT_EQ(::pwrite(fd(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
      ::usleep(static_cast<useconds_t>(c & 7) * 1000);
    }
  });
  std::string first(kBytes / 4, '?'), second = first;
  int vouched = 0;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (std::chrono::steady_clock::now() < until) {
    const ObjectLook before = look();
    ASSERT_EQ(::pread(fd(), first.data(), first.size(), 0), static_cast<ssize_t>(first.size()));
    ASSERT_EQ(::pread(fd(), second.data(), second.size(), 0), static_cast<ssize_t>(second.size()));
    if (!is_unchanged(before, look())) continue;
    ++vouched;
    ASSERT_EQ(first, second);
    ASSERT_EQ(first, std::string(first.size(), first[0]));
  }
  stop = true;
  writer.join();
  EXPECT_GT(vouched, 0);
}

}  // namespace
}  // namespace godwit::migration
