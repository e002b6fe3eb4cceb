#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "engine/base/files.h"
#include "engine/transport/file.h"

namespace godwit::transport {
namespace {

namespace fs = std::filesystem;

class ImageFile : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/godwit_file_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    path_ = directory_ / "image";
  }
  void TearDown() override { fs::remove_all(directory_); }

  static std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }
  static std::string read_text(FileSource& source, size_t size) {
    std::string text(size, '?');
    EXPECT_TRUE(source.read(std::as_writable_bytes(std::span(text))).ok());
    return text;
  }
  [[nodiscard]] fs::path partial() const { return path_.string() + ".partial"; }

  fs::path directory_;
  fs::path path_;
};

TEST_F(ImageFile, HasItsNameOnlyOnceItIsWhole) {
  FileSink sink = FileSink::create(path_).take();
  ASSERT_TRUE(sink.write(bytes("hello ")).ok());
  ASSERT_TRUE(sink.write(bytes("world")).ok());
  EXPECT_EQ(sink.bytes_written(), 11u);
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE(sink.flush().ok());
  EXPECT_EQ(fs::file_size(partial()), 11u);
  ASSERT_TRUE(sink.finish().ok());
  EXPECT_FALSE(fs::exists(partial()));
  EXPECT_EQ(read_file(path_).take(), "hello world");
  EXPECT_EQ(fs::status(path_).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(ImageFile, LeavesNothingWithoutFinish) {
  ASSERT_TRUE(FileSink::create(path_).take().write(bytes("half")).ok());
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(ImageFile, AnOldImageStaysUntilTheNewOneIsWhole) {
  ASSERT_TRUE(write_file(path_, "old").ok());
  ASSERT_TRUE(write_file(partial(), "rest of a crash").ok());
  {
    FileSink sink = FileSink::create(path_).take();
    ASSERT_TRUE(sink.write(bytes("new")).ok());
    EXPECT_EQ(read_file(path_).take(), "old");
    ASSERT_TRUE(sink.finish().ok());
  }
  EXPECT_EQ(read_file(path_).take(), "new");
}

TEST_F(ImageFile, DoesNotFollowALinkInItsPlace) {
  ASSERT_TRUE(write_file(directory_ / "precious", "precious").ok());
  fs::create_symlink(directory_ / "precious", partial());
  FileSink sink = FileSink::create(path_).take();
  ASSERT_TRUE(sink.write(bytes("image")).ok());
  ASSERT_TRUE(sink.finish().ok());
  EXPECT_EQ(read_file(directory_ / "precious").take(), "precious");
}

TEST_F(ImageFile, SmallAndLargeWritesKeepTheirOrder) {
  FileSink sink = FileSink::create(path_).take();
  std::string expected;
  for (int i = 0; i < 40; ++i) {
    const std::string piece(static_cast<size_t>(i % 5 == 0 ? 700'000 : 1 + i * 1000),
                            static_cast<char>('a' + i % 26));
    ASSERT_TRUE(sink.write(bytes(piece)).ok());
    expected += piece;
  }
  ASSERT_TRUE(sink.finish().ok());
  FileSource source = FileSource::open(path_).take();
  std::string got;
  for (size_t step = 1; got.size() < expected.size(); step = step * 3 + 1)
    got += read_text(source, std::min(step, expected.size() - got.size()));
  EXPECT_TRUE(got == expected);
  EXPECT_EQ(source.position(), expected.size());
}

TEST_F(ImageFile, SeeksAndTellsWhereItIs) {
  ASSERT_TRUE(write_file(path_, "0123456789").ok());
  FileSource source = FileSource::open(path_).take();
  EXPECT_EQ(read_text(source, 3), "012");
  EXPECT_EQ(source.position(), 3u);
  source.seek(7);
  EXPECT_EQ(source.position(), 7u);
  EXPECT_EQ(read_text(source, 2), "78");
  source.seek(0);
  EXPECT_EQ(read_text(source, 1), "0");
}

TEST_F(ImageFile, ATruncatedImageIsNamed) {
  ASSERT_TRUE(write_file(path_, "short").ok());
  FileSource source = FileSource::open(path_).take();
  std::vector<std::byte> six(6);
  const Status status = source.read(six);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().kind, ErrorKind::kPeerGone);
  EXPECT_EQ(status.error().subject, path_);
  EXPECT_EQ(FileSource::open(directory_ / "missing").error().err, ENOENT);
}

TEST_F(ImageFile, AWriteThatTheSystemRefusesIsNamed) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{4096, before.rlim_max};
  FileSink sink = FileSink::create(path_).take();
  ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  ASSERT_TRUE(sink.write(bytes(std::string(5000, 'x'))).ok());
  const Status status = sink.finish();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_DFL);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().err, EFBIG);
  EXPECT_EQ(status.error().subject, partial());
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(ImageFile, ADirectoryThatIsNotThereIsAnError) {
  EXPECT_EQ(FileSink::create(directory_ / "nowhere" / "image").error().err, ENOENT);
}

}  // namespace
}  // namespace godwit::transport
