#include "engine/transport/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "engine/base/units.h"

namespace godwit::transport {

namespace {

constexpr size_t kBufferSize = 1_MiB;
/// Told to the disk at once, in such steps.
constexpr uint64_t kStep = 1_MiB;
/// What may be on its way to the disk: a few turns of a slow one.
constexpr uint64_t kUnderWay = 128_MiB;

/// KERNEL: file systems without a disk behind them, and some with, have nothing to do or refuse; only what is
/// wrong with the file counts. The fsync of finish() has the last word in any case.
Status sync_range(int fd, uint64_t from, uint64_t to, unsigned flags, const std::string& path) {
  const int done = ::sync_file_range(fd, static_cast<off64_t>(from), static_cast<off64_t>(to - from), flags);
  if (done != 0 && (errno == EIO || errno == ENOSPC || errno == EDQUOT))
    return fail_errno("sync_file_range", path);
  return {};
}

/// The name itself survives a power cut only once its directory is on the disk.
Status sync_directory_of(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string directory = parent.empty() ? "." : parent.string();
  const Fd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno("open", directory);
  if (::fsync(fd.get()) != 0) return fail_errno("fsync", directory);
  return {};
}

}  // namespace

FileSink::FileSink(std::string path, Fd fd, Mapping buffer)
    : path_(std::move(path)), partial_(path_ + ".partial"), fd_(std::move(fd)), buffer_(std::move(buffer)) {}

FileSink::FileSink(FileSink&& other) noexcept
    : path_(std::move(other.path_)),
      partial_(std::exchange(other.partial_, {})),
      fd_(std::move(other.fd_)),
      buffer_(std::move(other.buffer_)),
      used_(std::exchange(other.used_, 0)),
      written_(other.written_),
      started_(other.started_),
      awaited_(other.awaited_) {}

FileSink::~FileSink() {
  if (!partial_.empty()) ::unlink(partial_.c_str());
}

Result<FileSink> FileSink::create(const std::string& path) {
  const std::string partial = path + ".partial";
  Mapping buffer = TRY(Mapping::anonymous(kBufferSize));
  // An old one is removed rather than truncated: it may be a link, or open in an engine that is still dying.
  if (::unlink(partial.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", partial);
  Fd fd(::open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR));
  if (!fd.valid()) return fail_errno("open", partial);
  return FileSink(path, std::move(fd), std::move(buffer));
}

Status FileSink::write(std::span<const std::byte> bytes) {
  const bool direct = bytes.size() >= kBufferSize / 2;
  if (direct || bytes.size() > kBufferSize - used_) TRY(flush());
  if (direct) return write_out(bytes);
  std::copy(bytes.begin(), bytes.end(), buffer_.data() + used_);
  used_ += bytes.size();
  return {};
}

Status FileSink::flush() {
  const size_t n = std::exchange(used_, 0);
  return write_out({buffer_.data(), n});
}

Status FileSink::write_out(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("write", partial_);
    bytes = bytes.subspan(static_cast<size_t>(n));
    written_ += static_cast<uint64_t>(n);
  }
  return keep_up();
}

Status FileSink::keep_up() {
  if (written_ - started_ < kStep) return {};
  TRY(sync_range(fd_.get(), started_, written_, SYNC_FILE_RANGE_WRITE, partial_));
  started_ = written_;
  if (started_ - awaited_ <= kUnderWay) return {};
  const uint64_t until = started_ - kUnderWay;
  TRY(sync_range(fd_.get(), awaited_, until, SYNC_FILE_RANGE_WAIT_BEFORE, partial_));
  awaited_ = until;
  return {};
}

Status FileSink::rewrite(uint64_t position, std::span<const std::byte> bytes) {
  TRY(flush());
  if (position > written_ || bytes.size() > written_ - position)
    return fail(ErrorKind::kBug, "rewrite", partial_, "it is not that long");
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(position));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("write", partial_);
    bytes = bytes.subspan(static_cast<size_t>(n));
    position += static_cast<uint64_t>(n);
  }
  return {};
}

Status FileSink::finish() {
  TRY(flush());
  // ORDER: contents before the name, else a power cut can leave a whole name on half an image.
  if (::fsync(fd_.get()) != 0) return fail_errno("fsync", partial_);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) return fail_errno("rename", partial_);
  partial_.clear();
  fd_.reset();
  return sync_directory_of(path_);
}

FileSource::FileSource(std::string path, Fd fd, Mapping buffer)
    : path_(std::move(path)), fd_(std::move(fd)), buffer_(std::move(buffer)) {}

Result<FileSource> FileSource::open(const std::string& path) {
  Mapping buffer = TRY(Mapping::anonymous(kBufferSize));
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno("open", path);
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  return FileSource(path, std::move(fd), std::move(buffer));
}

Status FileSource::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    if (const size_t have = std::min(end_ - begin_, bytes.size()); have > 0) {
      std::memcpy(bytes.data(), buffer_.data() + begin_, have);
      begin_ += have;
      bytes = bytes.subspan(have);
    } else if (bytes.size() >= kBufferSize / 2) {
      bytes = bytes.subspan(TRY(read_some(bytes)));
    } else {
      begin_ = end_ = 0;
      end_ = TRY(read_some(buffer_.span()));
    }
  }
  return {};
}

/// At least one byte.
Result<size_t> FileSource::read_some(std::span<std::byte> into) {
  while (true) {
    const ssize_t n = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset_));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("read", path_);
    if (n == 0)
      return fail(ErrorKind::kPeerGone, fmt::format("reading at {}: the file ends", offset_), path_,
                  "the image is truncated");
    offset_ += static_cast<uint64_t>(n);
    return static_cast<size_t>(n);
  }
}

void FileSource::seek(uint64_t position) {
  begin_ = end_ = 0;
  offset_ = position;
}

}  // namespace godwit::transport
