#include "engine/wire/packed_batch.h"

#include <fmt/format.h>
#include <lz4.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/xxh3.h"
#include "engine/wire/page_batch.h"

namespace godwit::wire {

namespace {

/// The fastest of the positive levels: what a link of a gigabit still has to wait for.
constexpr int kZstdLevel = 1;

uint32_t checksum_of(uint32_t type, std::span<const std::byte> payload) {
  return static_cast<uint32_t>(XXH3_64bits_withSeed(payload.data(), payload.size(), type));
}

bool is_batch(uint32_t type) {
  return type == static_cast<uint32_t>(RecordType::kPages) ||
         type == static_cast<uint32_t>(RecordType::kObjectPages);
}

/// All that can be said before a byte is unpacked.
Status judge(const Record& packed) {
  if (packed.type != RecordType::kPacked)
    return fail(ErrorKind::kCorrupt, "expecting a packed batch", packed.name());
  if (packed.payload.size() <= sizeof(PackedHeader))
    return fail(ErrorKind::kCorrupt, fmt::format("reading a packed batch of {} bytes", packed.payload.size()),
                packed.name());
  const auto header = load<PackedHeader>(packed.payload.data());
  if (!is_batch(header.type))
    return fail(ErrorKind::kCorrupt,
                fmt::format("reading a packed record {}", record_name(static_cast<RecordType>(+header.type))),
                packed.name(), "only batches of pages are packed");
  if (header.packing == 0 || header.packing > static_cast<uint32_t>(Packing::kZstd))
    return fail(ErrorKind::kUnsupported, fmt::format("reading packing {}", +header.packing), packed.name(),
                "the other engine is newer; use the same version on both sides");
  if (header.length > kBatchRecord || header.length <= packed.payload.size() - sizeof header)
    return fail(ErrorKind::kCorrupt,
                fmt::format("reading {} bytes packed to {}, at most {} are allowed, and no fewer than packed",
                            +header.length, packed.payload.size() - sizeof header, kBatchRecord),
                packed.name());
  return {};
}

}  // namespace

std::string_view to_string(Packing packing) {
  switch (packing) {
    case Packing::kNone:
      return "none";
    case Packing::kLz4:
      return "lz4";
    case Packing::kZstd:
      return "zstd";
  }
  return "invalid";
}

// ---- packing
// -----------------------------------------------------------------------------------------------------

Packer::Packer() = default;
Packer::Packer(Packer&&) noexcept = default;
Packer::~Packer() = default;

void Packer::FreeContext::operator()(ZSTD_CCtx_s* context) const {
  ::ZSTD_freeCCtx(context);
}

std::span<const std::byte> Packer::pack(Packing packing, RecordType type,
                                        std::span<const std::byte> payload) {
  CHECK(is_batch(static_cast<uint32_t>(type)) && payload.size() <= kBatchRecord);
  const size_t worthwhile = payload.size() - payload.size() / 16;
  if (worthwhile <= sizeof(PackedHeader)) return {};
  if (!room_) room_ = std::make_unique_for_overwrite<std::byte[]>(kBatchRecord);
  std::byte* const to = room_.get() + sizeof(PackedHeader);
  const size_t size = compress(packing, payload, {to, worthwhile - sizeof(PackedHeader)});
  if (size == 0) return {};
  const PackedHeader header{static_cast<uint32_t>(type), static_cast<uint32_t>(packing),
                            static_cast<uint32_t>(payload.size()),
                            checksum_of(static_cast<uint32_t>(type), payload)};
  std::memcpy(room_.get(), &header, sizeof header);
  return {room_.get(), sizeof header + size};
}

/// 0: it does not fit.
size_t Packer::compress(Packing packing, std::span<const std::byte> from, std::span<std::byte> to) {
  if (packing == Packing::kLz4) {
    const int size =
        ::LZ4_compress_default(reinterpret_cast<const char*>(from.data()), reinterpret_cast<char*>(to.data()),
                               static_cast<int>(from.size()), static_cast<int>(to.size()));
    return size > 0 ? static_cast<size_t>(size) : 0;
  }
  CHECK(packing == Packing::kZstd);
  if (!zstd_) zstd_.reset(::ZSTD_createCCtx());
  if (!zstd_) return 0;  // no memory for it: plain is always possible
  const size_t size =
      ::ZSTD_compressCCtx(zstd_.get(), to.data(), to.size(), from.data(), from.size(), kZstdLevel);
  return ::ZSTD_isError(size) != 0 ? 0 : size;
}

// ---- unpacking
// ---------------------------------------------------------------------------------------------------

Unpacker::Unpacker() = default;
Unpacker::Unpacker(Unpacker&&) noexcept = default;
Unpacker::~Unpacker() = default;

void Unpacker::FreeContext::operator()(ZSTD_DCtx_s* context) const {
  ::ZSTD_freeDCtx(context);
}

Result<Record> Unpacker::unpack(const Record& packed) {
  TRY(judge(packed));
  const auto header = load<PackedHeader>(packed.payload.data());
  // ORDER: the claimed length is bounded before memory is taken for it.
  if (capacity_ < header.length) {
    capacity_ = 0;
    room_ = std::make_unique_for_overwrite<std::byte[]>(header.length);
    capacity_ = header.length;
  }
  const std::span<std::byte> payload(room_.get(), header.length);
  TRY(decompress(packed, static_cast<Packing>(+header.packing), payload));
  if (checksum_of(header.type, payload) != header.checksum)
    return fail(ErrorKind::kCorrupt, "checking what was unpacked", packed.name(),
                "it is not what was packed: the stream was damaged, or an engine is defective");
  return Record{static_cast<RecordType>(+header.type), packed.sequence, packed.channel, payload};
}

/// Fills `to` exactly.
Status Unpacker::decompress(const Record& packed, Packing packing, std::span<std::byte> to) {
  const std::span<const std::byte> from = packed.payload.subspan(sizeof(PackedHeader));
  const auto broken = [&](std::string_view what) {
    return fail(ErrorKind::kCorrupt,
                fmt::format("unpacking {} to {} bytes: {}", to_string(packing), to.size(), what),
                packed.name());
  };
  if (packing == Packing::kLz4) {
    // SAFETY: the safe variant stays within both spans, whatever the bytes say.
    const int got =
        ::LZ4_decompress_safe(reinterpret_cast<const char*>(from.data()), reinterpret_cast<char*>(to.data()),
                              static_cast<int>(from.size()), static_cast<int>(to.size()));
    if (got < 0) return broken("malformed");
    return static_cast<size_t>(got) == to.size() ? Status() : broken(fmt::format("{} came out", got));
  }
  if (!zstd_) zstd_.reset(::ZSTD_createDCtx());
  if (!zstd_) return fail_errno("ZSTD_createDCtx", packed.name(), ENOMEM);
  const size_t got = ::ZSTD_decompressDCtx(zstd_.get(), to.data(), to.size(), from.data(), from.size());
  if (::ZSTD_isError(got) != 0) return broken(::ZSTD_getErrorName(got));
  return got == to.size() ? Status() : broken(fmt::format("{} came out", got));
}

}  // namespace godwit::wire
