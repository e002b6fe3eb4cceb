#include "engine/wire/record.h"

#include <fmt/format.h>

#include "engine/base/xxh3.h"

namespace godwit::wire {

uint32_t record_checksum(uint64_t seed, const RecordHeader& header, std::span<const std::byte> payload) {
  const uint64_t of_header = XXH3_64bits_withSeed(&header, offsetof(RecordHeader, checksum), seed);
  return static_cast<uint32_t>(XXH3_64bits_withSeed(payload.data(), payload.size(), of_header));
}

std::string record_subject(uint32_t sequence, uint16_t channel) {
  return fmt::format("record {} of channel {}", sequence, channel);
}

std::string record_subject(uint32_t sequence, RecordType type, uint16_t channel) {
  return fmt::format("record {} ({}) of channel {}", sequence, record_name(type), channel);
}

std::string Record::name() const {
  return record_subject(sequence, type, channel);
}

}  // namespace godwit::wire
