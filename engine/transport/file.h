// An image on disk as a sink and a source. One thread each.
#pragma once

#include <string>

#include "engine/base/fd.h"
#include "engine/base/mapping.h"
#include "engine/model/record_stream.h"

namespace godwit::transport {

/// Writes PATH.partial and gives it its name when it is complete and on the disk; an image under its own name
/// is therefore always whole. Without finish() the partial file is removed. The disk works from the start,
/// and is never far behind, so that a writer feels how fast it is and finish() has not much left to wait for.
class FileSink final : public ImageSink {
 public:
  /// Readable by the owner alone: an image holds a process's memory. A PATH.partial of an earlier run is
  /// replaced. Errors: System, Denied.
  static Result<FileSink> create(const std::string& path);
  FileSink(FileSink&& other) noexcept;
  FileSink& operator=(FileSink&&) = delete;
  ~FileSink() override;

  Status write(std::span<const std::byte> bytes) override;
  Status flush() override;  ///< in the file, not yet safe from a power cut
  Status rewrite(uint64_t position, std::span<const std::byte> bytes) override;
  Status finish() override;  ///< flush, sync, rename, sync the directory

  [[nodiscard]] uint64_t bytes_written() const override { return written_ + used_; }

 private:
  FileSink(std::string path, Fd fd, Mapping buffer);
  Status write_out(std::span<const std::byte> bytes);
  Status keep_up();

  std::string path_;
  std::string partial_;  ///< empty once it has its name
  Fd fd_;
  Mapping buffer_;
  size_t used_ = 0;
  uint64_t written_ = 0;
  uint64_t started_ = 0;  ///< bytes of which the disk was told
  uint64_t awaited_ = 0;  ///< bytes that it has
};

class FileSource final : public ByteSource {
 public:
  /// Errors: System, Denied.
  static Result<FileSource> open(const std::string& path);

  /// Errors: PeerGone when the file ends before `bytes` is full, System.
  Status read(std::span<std::byte> bytes) override;

  /// Where the next read() begins. Seeking costs nothing until then.
  [[nodiscard]] uint64_t position() const { return offset_ - (end_ - begin_); }
  void seek(uint64_t position);

 private:
  FileSource(std::string path, Fd fd, Mapping buffer);
  Result<size_t> read_some(std::span<std::byte> into);

  std::string path_;
  Fd fd_;
  Mapping buffer_;
  size_t begin_ = 0;  ///< buffered and not yet read
  size_t end_ = 0;
  uint64_t offset_ = 0;  ///< in the file, behind the buffered bytes
};

}  // namespace godwit::transport
