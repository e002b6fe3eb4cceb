// The header before every record and its checksum, shared by writer and reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "engine/wire/little_endian.h"
#include "engine/wire/record_type.h"

namespace godwit::wire {

struct RecordHeader {
  Le32 type;      ///< RecordType, the top bit is kOptionalBit
  Le32 length;    ///< of the payload, bytes
  Le32 sequence;  ///< within this stream, from 0
  Le32 checksum;  ///< record_checksum()
};
static_assert(sizeof(RecordHeader) == 16);

/// The low half of XXH3-64 over the payload, seeded with XXH3-64 over the first 12 header bytes, seeded with
/// checksum_seed(). One pass over the payload without a streaming state.
uint32_t record_checksum(uint64_t seed, const RecordHeader& header, std::span<const std::byte> payload);

/// One record as the reader hands it out.
struct Record {
  RecordType type = RecordType::kInvalid;
  uint32_t sequence = 0;
  uint16_t channel = 0;
  std::span<const std::byte> payload;  ///< lives until the reader's next next()

  /// "record 12 (pages) of channel 0": the subject of every error about it.
  [[nodiscard]] std::string name() const;
};

std::string record_subject(uint32_t sequence, uint16_t channel);
std::string record_subject(uint32_t sequence, RecordType type, uint16_t channel);

}  // namespace godwit::wire
