// A page batch that travels compressed: the `packed` record holds a whole `pages` or `object_pages` payload.
// Stage: PageBatchWriter -> Packer -> RecordWriter, and RecordReader -> Unpacker -> PageBatchReader. Pure
// (bytes to bytes); one thread an object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "engine/base/result.h"
#include "engine/wire/little_endian.h"
#include "engine/wire/record.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace godwit::wire {

enum class Packing : uint8_t {
  kNone = 0,
  kLz4,   ///< one LZ4 block
  kZstd,  ///< one Zstandard frame
};
std::string_view to_string(Packing packing);

struct PackedHeader {
  Le32 type;      ///< of the record within: pages or object_pages
  Le32 packing;   ///< Packing, never kNone
  Le32 length;    ///< of its payload; more than what follows here, at most kBatchRecord
  Le32 checksum;  ///< the low half of XXH3-64 over its payload, seeded with its type
};
static_assert(sizeof(PackedHeader) == 16);

class Packer {
 public:
  Packer();
  Packer(Packer&&) noexcept;
  Packer& operator=(Packer&&) = delete;
  ~Packer();

  /// The payload of a `packed` record, valid until the next call, for `payload` of a record `type`. Empty
  /// when that would be hardly shorter (by less than 1/16): send it as it is. Memory is taken at the first
  /// call.
  std::span<const std::byte> pack(Packing packing, RecordType type, std::span<const std::byte> payload);

 private:
  size_t compress(Packing packing, std::span<const std::byte> from, std::span<std::byte> to);

  struct FreeContext {
    void operator()(ZSTD_CCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_CCtx_s, FreeContext> zstd_;
  std::unique_ptr<std::byte[]> room_;
};

class Unpacker {
 public:
  Unpacker();
  Unpacker(Unpacker&&) noexcept;
  Unpacker& operator=(Unpacker&&) = delete;
  ~Unpacker();

  /// The record within, under the same sequence number and channel; it lives until the next call. Nothing is
  /// handed out of one that is not whole, and never more memory taken than the largest batch needs. Errors:
  /// Corrupt, Unsupported (packing), both naming the record.
  Result<Record> unpack(const Record& packed);

 private:
  Status decompress(const Record& packed, Packing packing, std::span<std::byte> to);

  struct FreeContext {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_DCtx_s, FreeContext> zstd_;
  std::unique_ptr<std::byte[]> room_;
  size_t capacity_ = 0;
};

}  // namespace godwit::wire
