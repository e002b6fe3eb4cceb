// An image in memory: a checkpoint that is never on a disk, for programs that hold, compare or pass on what
// they checkpoint. One thread at a time.
#pragma once

#include <vector>

#include "engine/model/record_stream.h"

namespace godwit::migration {

class MemoryImage final : public ImageSink {
 public:
  Status write(std::span<const std::byte> bytes) override;
  Status flush() override { return {}; }
  Status rewrite(uint64_t position, std::span<const std::byte> bytes) override;
  Status finish() override { return {}; }
  [[nodiscard]] uint64_t bytes_written() const override { return bytes_.size(); }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

  /// Reads an image from its beginning; the image must outlive it, and not be written meanwhile.
  class Source final : public ByteSource {
   public:
    explicit Source(const MemoryImage& image) : left_(image.bytes_) {}
    Status read(std::span<std::byte> bytes) override;

   private:
    std::span<const std::byte> left_;
  };

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace godwit::migration
